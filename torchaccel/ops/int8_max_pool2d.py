"""int8_max_pool2d: the greatest value of each window; a monotone scale commutes with it, so it needs none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from torchaccel.ops import _conv, _pool
from torchaccel.ops._library import define, run, too_old

OP = "int8_max_pool2d"


def reference(
    a: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Tensor:
    """The op in plain PyTorch, with its schema's arguments; float32 holds every int8 value."""
    out = _fake(a, kernel_size, stride, padding, dilation, ceil_mode)
    if out.numel() == 0:
        return out
    kernel, step, edge, apart = map(list, (kernel_size, stride, padding, dilation))
    y = F.max_pool2d(a.to(torch.float32), kernel, step, edge, apart, ceil_mode)
    return out.copy_(y.clamp(min=torch.iinfo(a.dtype).min))


def _fake(a, kernel_size, stride, padding, dilation, ceil_mode):
    size = _pool.output_size(a.shape[2:], kernel_size, stride, padding, dilation, ceil_mode)
    return _conv.empty_nhwc((*a.shape[:2], *size), a.dtype, a.device)


define(
    f"{OP}(Tensor a, int[] kernel_size, int[] stride, int[] padding, int[] dilation, bool ceil_mode) -> Tensor",
    reference,
    _fake,
)


def supports(device: torch.device) -> str | None:
    """Why no native kernel serves `device`, or None where one does."""
    return too_old(device)


def int8_max_pool2d(
    a: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] | None = None,
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> Tensor:
    """Take the maximum of each window of quantized activations; scale and zero point stay as they are.

    Padding never wins; a window without a pixel gives the least value of the type.

    Args:
        a: [N, C, H, W] int8 or uint8; taken as channels_last, converted where it is not.
        kernel_size, padding, dilation: two integers each (height, width); padding is at most half of the kernel size.
        stride: two integers; None is the kernel size.
        ceil_mode: whether a last window may hang over the edge.

    Returns:
        [N, C, OH, OW] of the dtype of `a`, channels_last.

    Raises:
        ValueError: a wrong shape or dtype, or a window that does not fit.

    Equivalent to `F.max_pool2d(a.float(), kernel_size, stride, padding, dilation, ceil_mode).to(a.dtype)`.
    """
    stride = kernel_size if stride is None else stride

    def validate() -> None:
        _pool.check(OP, a, kernel_size, stride, padding, dilation, ceil_mode)

    def call(op: Callable) -> Tensor:
        return op(_conv.as_nhwc(a), kernel_size, stride, padding, dilation, ceil_mode)

    return run(OP, a.device, supports(a.device), reference, validate, call)
