"""int8_linear_weight_only: float activations times int8 weights (W8A16 and kin), for memory-bound small M."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from torchaccel.ops import _check, _epilogue, _tiles
from torchaccel.ops._library import define, has_kernel, run, too_old
from torchaccel.ops.pack_int8 import pack_int8

OP = "int8_linear_weight_only"
# From here on the CUDA kernel, which reads the weights again for each 8 rows of float32, loses to one float32 product.
_FLOAT32_ROWS = 64
_HALVES = (torch.float16, torch.bfloat16)
_LANES = 16  # output channels that the CPU kernel widens at once


def _reference(
    x: Tensor, b: Tensor, scale_b: Tensor, bias: Tensor | None, activation: str, packed: Tensor | None
) -> Tensor:
    # In float32: sums of unscaled int8 weights leave the range of float16.
    y = F.linear(x.to(torch.float32), b.to(torch.float32)) * scale_b
    if bias is not None:
        y = y + bias
    return _epilogue.activate(y, activation).to(x.dtype)


def _fake(x, b, scale_b, bias, activation, packed):
    return torch.empty((*x.shape[:-1], b.shape[0]), dtype=x.dtype, device=x.device)


define(
    f"{OP}(Tensor x, Tensor b, Tensor scale_b, Tensor? bias, str activation, Tensor? packed) -> Tensor",
    _reference,
    _fake,
)


def supports(device: torch.device, *, dtype: torch.dtype, rows: int) -> str | None:
    """Why no native kernel takes `rows` rows of `dtype` on `device`, or None where one does."""
    if device.type == "cuda" and dtype == torch.float32 and rows > _FLOAT32_ROWS:
        return f"the CUDA kernel takes up to {_FLOAT32_ROWS} rows of float32, not {rows}"
    return too_old(device)


def pack_weight_only(b: Tensor) -> Tensor | None:
    """Lay out int8 weights [N, K] for the native kernel of their device.

    Returns:
        An opaque int8 tensor for the `packed` argument, or None where no native kernel wants one.
    """
    _check.dtype_in("pack_weight_only", "b", b.dtype, (torch.int8,))
    if b.dim() != 2:
        _check.fail("pack_weight_only", f"b has shape {tuple(b.shape)}, accepted is [N, K]")
    if b.device.type == "cuda":
        return pack_int8(b, two_four=False)
    if not has_kernel(OP, b.device):
        return None
    n, k = b.shape
    lanes = F.pad(b, (0, 0, 0, -n % _LANES)).view((n + _LANES - 1) // _LANES, _LANES, k)
    return lanes.transpose(1, 2).contiguous()  # [N / 16, K, 16]


def int8_linear_weight_only(
    x: Tensor,
    b: Tensor,
    scale_b: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    packed: Tensor | None = None,
) -> Tensor:
    """Multiply float activations by int8 weights: `act((x @ b.T) * scale_b + bias)`.

    Args:
        x: [..., K] float32, float16 or bfloat16.
        b: [N, K] int8.
        scale_b: [N] float32; bias: [N] float32.
        activation: "none", "relu", "relu6", "gelu" or "silu".
        packed: what `pack_weight_only(b)` returned; packed anew at each call where it is not given.

    Returns:
        [..., N] of the dtype of `x`, contiguous.

    Raises:
        ValueError: a wrong shape, dtype or device.

    Equivalent to `F.linear(x, b * scale_b[:, None], bias)`.
    """

    def validate() -> None:
        _check.dtype_in(OP, "x", x.dtype, _check.FLOATS)
        _check.dtype_in(OP, "b", b.dtype, (torch.int8,))
        _check.device_of(OP, x, b=b, scale_b=scale_b, bias=bias, packed=packed)
        if b.dim() != 2 or x.dim() == 0 or x.shape[-1] != b.shape[1]:
            _check.fail(OP, f"x has shape {tuple(x.shape)}, b has {tuple(b.shape)}; accepted are [..., K] and [N, K]")
        _check.sizes(OP, "scale_b", scale_b, (b.shape[0],))
        _check.sizes(OP, "bias", bias, (b.shape[0],))
        _check.known_activation(OP, activation)

    def call(op: Callable) -> Tensor:
        if x.device.type == "cpu":
            layout = pack_weight_only(b) if packed is None else packed
            if x.dtype in _HALVES:  # the kernel takes float32, and sums in it anyway
                return op(x.to(torch.float32), b, scale_b, bias, activation, layout).to(x.dtype)
            return op(x, b, scale_b, bias, activation, layout)
        tiles = _tiles.pack_whole(b) if packed is None and _tiles.wanted(OP, x.device) else packed
        return op(x, b, scale_b, bias, activation, tiles)

    reason = supports(x.device, dtype=x.dtype, rows=x.shape[:-1].numel())
    return run(OP, x.device, reason, _reference, validate, call)
