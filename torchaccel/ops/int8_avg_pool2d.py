"""int8_avg_pool2d: the average of each window from exact int32 sums, as floats or requantized."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from torchaccel.ops import _check, _conv, _epilogue, _pool
from torchaccel.ops._library import define, run, too_old

OP = "int8_avg_pool2d"
MAX_AREA = (2**31 - 1) // 255  # pixels of a window whose sum int32 holds
_NO_DILATION = (1, 1)


def reference(
    a: Tensor,
    scale_a: Tensor,
    zero_point: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    out_dtype: torch.dtype,
    scale_out: Tensor | None,
    zero_point_out: Tensor | None,
) -> Tensor:
    """The op in plain PyTorch, with its schema's arguments."""
    n, c, height, width = a.shape
    oh, ow = _pool.output_size((height, width), kernel_size, stride, padding, _NO_DILATION, ceil_mode)
    out = _conv.empty_nhwc((n, c, oh, ow), out_dtype, a.device)
    if out.numel() == 0:
        return out
    windows = ((height, oh, kernel_size[0], stride[0], padding[0]), (width, ow, kernel_size[1], stride[1], padding[1]))

    def areas(include_padding: bool) -> Tensor:  # [OH, OW]
        rows, columns = (_pool.counts(*window, include_padding, a.device) for window in windows)
        return rows.view(-1, 1) * columns

    kernel, step, edge = map(list, (kernel_size, stride, padding))
    sums = F.avg_pool2d(a.to(torch.float64), kernel, step, edge, ceil_mode, divisor_override=1)
    acc = sums.to(torch.int32)
    if zero_point is not None:
        acc = acc - zero_point * areas(False)
    y = acc.to(torch.float32) * (scale_a * torch.reciprocal(areas(count_include_pad).to(torch.float32)))
    if scale_out is None:
        return out.copy_(y)
    return out.copy_(_epilogue.saturate(y, scale_out, 0 if zero_point_out is None else zero_point_out, out_dtype))


def _fake(
    a, scale_a, zero_point, kernel_size, stride, padding, ceil_mode, count_include_pad, out_dtype, scale_out,
    zero_point_out,
):  # fmt: skip
    size = _pool.output_size(a.shape[2:], kernel_size, stride, padding, _NO_DILATION, ceil_mode)
    return _conv.empty_nhwc((*a.shape[:2], *size), out_dtype, a.device)


define(
    f"{OP}(Tensor a, Tensor scale_a, Tensor? zero_point, int[] kernel_size, int[] stride, int[] padding, "
    "bool ceil_mode, bool count_include_pad, ScalarType out_dtype, Tensor? scale_out, Tensor? zero_point_out) "
    "-> Tensor",
    reference,
    _fake,
)


def supports(device: torch.device, *, out_dtype: torch.dtype) -> str | None:
    """Why no native kernel serves these facts on `device`, or None where one does."""
    if device.type == "cpu" and out_dtype not in (torch.float32, *_check.INT8):
        return f"the CPU kernel writes float32, int8 or uint8, not {out_dtype}"
    return too_old(device)


def int8_avg_pool2d(
    a: Tensor,
    scale_a: Tensor,
    zero_point: Tensor | None = None,
    kernel_size: Sequence[int] | None = None,
    stride: Sequence[int] | None = None,
    padding: Sequence[int] = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    out_dtype: torch.dtype = torch.float32,
    scale_out: Tensor | None = None,
    zero_point_out: Tensor | None = None,
) -> Tensor:
    """Average each window of quantized activations, exactly in int32, and finish in one pass.

    `y = float(sum(a - zero_point)) * (scale_a * (1 / count))`, each step rounded to float32, where padding adds nothing
    to the sum; with an int8 `out_dtype` the result is `rint(y * (1 / scale_out)) + zero_point_out`, saturating.

    Args:
        a: [N, C, H, W] int8 or uint8; taken as channels_last, converted where it is not.
        scale_a: [1] float32.
        zero_point: [1] int32, of `a`; None is 0.
        kernel_size: two integers (height, width), at most 8421504 pixels; None is the whole image, a global average.
        stride: two integers; None is the kernel size.
        padding: two integers, at most half of the kernel size.
        ceil_mode: whether a last window may hang over the edge.
        count_include_pad: whether padding counts as pixels that are zero.
        out_dtype: float32, float16, bfloat16, int8 or uint8.
        scale_out, zero_point_out: [1] float32 and [1] int32, for an int8 `out_dtype` and only for it.

    Returns:
        [N, C, OH, OW] of `out_dtype`, channels_last.

    Raises:
        ValueError: a wrong shape, dtype or device, or a window that does not fit.

    Equivalent to `F.avg_pool2d((a - zero_point) * scale_a, kernel_size, stride, padding, ceil_mode, count_include_pad)`
    in exact arithmetic.
    """
    kernel = tuple(a.shape[2:]) if kernel_size is None else kernel_size
    step = kernel if stride is None else stride

    def validate() -> None:
        _pool.check(OP, a, kernel, step, padding, _NO_DILATION, ceil_mode)
        if kernel[0] * kernel[1] > MAX_AREA:
            _check.fail(OP, f"kernel_size is {tuple(kernel)}, accepted are at most {MAX_AREA} pixels")
        _check.device_of(OP, a, scale_a=scale_a, zero_point=zero_point, scale_out=scale_out)
        _check.sizes(OP, "scale_a", scale_a, (1,))
        _check.sizes(OP, "zero_point", zero_point, (1,))
        _check.output(OP, out_dtype, scale_out, zero_point_out)

    def call(op: Callable) -> Tensor:
        return op(
            _conv.as_nhwc(a), scale_a, zero_point, kernel, step, padding, ceil_mode, count_include_pad, out_dtype,
            scale_out, zero_point_out,
        )  # fmt: skip

    return run(OP, a.device, supports(a.device, out_dtype=out_dtype), reference, validate, call)
