"""quantize_int8: float to int8 or uint8, per tensor with a given scale or per row with one it finds."""

from __future__ import annotations

import torch
from torch import Tensor

from torchaccel.ops import _check
from torchaccel.ops._epilogue import saturate
from torchaccel.ops._library import define, too_old

OP = "quantize_int8"
_TINY = torch.finfo(torch.float32).tiny


def _static_reference(x: Tensor, scale: Tensor, zero_point: Tensor | None, dtype: torch.dtype) -> Tensor:
    q = saturate(x.to(torch.float32), scale, 0 if zero_point is None else zero_point, dtype)
    return torch.empty_like(x, dtype=dtype).copy_(q)


def _static_fake(x: Tensor, scale: Tensor, zero_point: Tensor | None, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(x, dtype=dtype)


def _dynamic_reference(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    rows = x.numel() // x.shape[-1] if x.shape[-1] else x.shape[:-1].numel()
    x32 = x.reshape(rows, x.shape[-1]).to(torch.float32)
    if x.shape[-1] == 0:
        low = high = x32.new_zeros(rows)
    else:
        low, high = x32.amin(1).clamp(max=0.0), x32.amax(1).clamp(min=0.0)
    if dtype == torch.int8:
        span, steps = torch.maximum(-low, high), 127.0
    else:
        # Halved before the subtraction: the span of a finite row may exceed the largest float.
        span, steps = high * 0.5 - low * 0.5, 127.5
    # Divided by a tensor: by a number, CUDA multiplies with its rounded inverse.
    scale = torch.clamp(span / torch.full_like(span, steps), min=_TINY)
    scale = torch.where(torch.isfinite(span), scale, float("nan"))
    inverse = torch.reciprocal(scale)
    if dtype == torch.int8:
        zero_point = torch.zeros(rows, dtype=torch.int32, device=x.device)
    else:
        zero_point = torch.nan_to_num(torch.round(-low * inverse), nan=0.0).clamp(0, 255).to(torch.int32)
    q = saturate(x32, scale.view(-1, 1), zero_point.view(-1, 1), dtype)
    return q.reshape(x.shape).contiguous(), scale, zero_point


def _dynamic_fake(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    rows = 1
    for size in x.shape[:-1]:
        rows = rows * size
    q = torch.empty(x.shape, dtype=dtype, device=x.device)
    return q, x.new_empty(rows, dtype=torch.float32), x.new_empty(rows, dtype=torch.int32)


define(f"{OP}(Tensor x, Tensor scale, Tensor? zero_point, ScalarType dtype) -> Tensor", _static_reference, _static_fake)
define(
    f"{OP}_dynamic(Tensor x, ScalarType dtype) -> (Tensor q, Tensor scale, Tensor zero_point)",
    _dynamic_reference,
    _dynamic_fake,
)


def supports(device: torch.device, *, dtype: torch.dtype) -> str | None:
    """Why no native kernel takes an input of `dtype` on `device`, or None where one does."""
    if device.type == "cpu" and dtype != torch.float32:
        return f"the CPU kernel takes torch.float32, not {dtype}"
    return too_old(device)


def quantize_int8(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    dtype: torch.dtype = torch.int8,
) -> Tensor:
    """Quantize a tensor with one given scale: `clamp(rint(x * (1 / scale)) + zero_point)`, rounding half to even.

    NaN becomes the zero point and infinities saturate.

    Args:
        x: any shape and dense strides, float32, float16 or bfloat16.
        scale: one element, float32, finite and above 0.
        zero_point: one element, int32; None is 0.
        dtype: torch.int8 or torch.uint8.

    Returns:
        A tensor of `dtype` with the shape and strides of `x`.

    Raises:
        ValueError: a wrong dtype, device or size, or a scale that is not finite and above 0.

    Equivalent to `torch.quantize_per_tensor(x, scale, zero_point, torch.qint8).int_repr()`.
    """
    _check.dtype_in(OP, "x", x.dtype, _check.FLOATS)
    _check.dtype_in(OP, "dtype", dtype, _check.INT8)
    _check.device_of(OP, x, scale=scale, zero_point=zero_point)
    _check.scale_value(OP, "scale", scale)
    if supports(x.device, dtype=x.dtype) is not None:
        return _static_reference(x, scale, zero_point, dtype)
    return torch.ops.torchaccel.quantize_int8(x, scale, zero_point, dtype)


def quantize_int8_dynamic(x: Tensor, dtype: torch.dtype = torch.int8) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize each row (the last dimension) with the scale of its own range.

    int8 is symmetric: `scale = max|x| / 127`. uint8 spans [min(x, 0), max(x, 0)] in 255 steps. A row of zeros gives
    zeros; a row that holds NaN or an infinity gets the scale NaN, so that what is computed from it is NaN.

    Args:
        x: [..., K], float32, float16 or bfloat16.
        dtype: torch.int8 or torch.uint8.

    Returns:
        q: [..., K] of `dtype`, contiguous; scale: [rows] float32; zero_point: [rows] int32 (zeros for int8).

    Raises:
        ValueError: a wrong dtype, or `x` without dimensions.

    Equivalent to `s = x.abs().amax(-1, keepdim=True) / 127; (x / s).round().to(torch.int8), s`.
    """
    op = f"{OP}_dynamic"
    _check.dtype_in(op, "x", x.dtype, _check.FLOATS)
    _check.dtype_in(op, "dtype", dtype, _check.INT8)
    if x.dim() == 0:
        _check.fail(op, "x has no dimensions, accepted is [..., K]")
    if supports(x.device, dtype=x.dtype) is not None:
        return _dynamic_reference(x, dtype)
    return torch.ops.torchaccel.quantize_int8_dynamic(x, dtype)
