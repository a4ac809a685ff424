"""pack_int8: the weights of a dense int8 op in the layout that its native kernel reads."""

from __future__ import annotations

import torch
from torch import Tensor

from torchaccel.ops import _check, _tiles
from torchaccel.ops._library import define, has_kernel

OP = "pack_int8"


def _reference(b: Tensor, groups: int) -> Tensor:
    return b.clone(memory_format=torch.contiguous_format)


def _fake(b: Tensor, groups: int) -> Tensor:
    raise RuntimeError("pack_int8: packing is a step before tracing; its layout belongs to the kernel")


define(f"{OP}(Tensor b, int groups) -> Tensor", _reference, _fake)


def pack_int8(b: Tensor, groups: int = 1, in_channels: int | None = None, two_four: bool = True) -> Tensor | None:
    """Lay out dense int8 weights for the native kernel of their device.

    Args:
        b: [N, K] int8, for a convolution the weight as [O, kh * kw * C / groups] (input channels innermost).
        groups: of the convolution; N is a multiple of it.
        in_channels: C of the convolution, or None for a linear layer, whose K it is.
        two_four: on CUDA, take half the products where at most two of each four neighbours along C are not zero.

    Returns:
        An opaque int8 tensor for the `packed` argument, or None where no native kernel wants one or takes the groups.
    """
    _check.dtype_in(OP, "b", b.dtype, (torch.int8,))
    if b.dim() != 2 or b.shape[0] % groups:
        _check.fail(
            OP, f"b has shape {tuple(b.shape)} with groups={groups}, accepted is [N, K] with N a multiple of groups"
        )
    if _tiles.wanted("int8_linear" if in_channels is None else "int8_conv2d", b.device):
        if groups != 1:
            return None
        in_pieces = (b.shape[1] if in_channels is None else in_channels) % 16 == 0
        return _tiles.pack(b, two_four=None if two_four and in_pieces else False, skip=False).tiles
    if not has_kernel(OP, b.device):
        return None
    return torch.ops.torchaccel.pack_int8(b.contiguous(), groups)
