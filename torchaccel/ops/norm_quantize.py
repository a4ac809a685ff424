"""norm_quantize_int8: LayerNorm or RMSNorm and the quantization that an int8_linear after it needs, in one pass."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from torchaccel.ops import _check
from torchaccel.ops._epilogue import saturate
from torchaccel.ops._library import define, run, too_old
from torchaccel.ops.quantize_int8 import _dynamic_fake, _dynamic_reference

OP = "norm_quantize_int8"


def _normalized(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, centred: bool) -> Tensor:
    y = x.to(torch.float32)
    if centred:
        y = y - y.mean(-1, keepdim=True)
    y = y * torch.reciprocal(torch.sqrt((y * y).mean(-1, keepdim=True) + eps))
    if weight is not None:
        y = y * weight.to(torch.float32)
    return y if bias is None else y + bias.to(torch.float32)


def _static_reference(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    centred: bool,
    scale: Tensor,
    zero_point: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    y = _normalized(x, weight, bias, eps, centred)
    return saturate(y, scale, 0 if zero_point is None else zero_point, dtype).contiguous()


def _static_fake(x, weight, bias, eps, centred, scale, zero_point, dtype):
    return torch.empty(x.shape, dtype=dtype, device=x.device)


def _rows_reference(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, centred: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    return _dynamic_reference(_normalized(x, weight, bias, eps, centred), dtype)


def _rows_fake(x, weight, bias, eps, centred, dtype):
    return _dynamic_fake(x, dtype)


_ARGUMENTS = "Tensor x, Tensor? weight, Tensor? bias, float eps, bool centred"
define(
    f"{OP}({_ARGUMENTS}, Tensor scale, Tensor? zero_point, ScalarType dtype) -> Tensor", _static_reference, _static_fake
)
define(
    f"{OP}_dynamic({_ARGUMENTS}, ScalarType dtype) -> (Tensor q, Tensor scale, Tensor zero_point)",
    _rows_reference,
    _rows_fake,
)


def supports(device: torch.device) -> str | None:
    """Why no native kernel serves `device`, or None where one does."""
    return "there is no CPU kernel" if device.type == "cpu" else too_old(device)


def _norm_quantize(
    op: str,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    centred: bool,
    scale: Tensor | None,
    zero_point: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor | None]:
    def validate() -> None:
        _check.dtype_in(op, "x", x.dtype, _check.FLOATS)
        _check.dtype_in(op, "dtype", dtype, _check.INT8)
        if x.dim() == 0:
            _check.fail(op, "x has no dimensions, accepted is [..., K]")
        _check.device_of(op, x, weight=weight, bias=bias, scale=scale, zero_point=zero_point)
        for name, vector in (("weight", weight), ("bias", bias)):
            if vector is not None:
                _check.sizes(op, name, vector, (x.shape[-1],))
                _check.dtype_in(op, name, vector.dtype, (x.dtype,))
        if not 0 <= eps < math.inf:
            _check.fail(op, f"eps is {eps}, accepted is a finite number of at least 0")
        if scale is not None:
            _check.scale_value(op, "scale", scale)
            _check.dtype_in(op, "scale", scale.dtype, (torch.float32,))
        if zero_point is not None:
            if scale is None:
                _check.fail(op, "zero_point is given without scale; each row finds both")
            _check.sizes(op, "zero_point", zero_point, (1,), ())
            _check.dtype_in(op, "zero_point", zero_point.dtype, (torch.int32,))

    reason = supports(x.device)
    if scale is None:
        if zero_point is not None:
            validate()
        return run(
            f"{OP}_dynamic", x.device, reason, _rows_reference, validate,
            lambda call: call(x, weight, bias, eps, centred, dtype),
        )  # fmt: skip

    def static(call: Callable) -> Tensor:
        return call(x, weight, bias, eps, centred, scale, zero_point, dtype)

    return run(OP, x.device, reason, _static_reference, validate, static), scale, zero_point


def layer_norm_quantize_int8(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    scale: Tensor | None = None,
    zero_point: Tensor | None = None,
    dtype: torch.dtype = torch.int8,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Normalize each row (the last dimension) to mean 0 and variance 1, and quantize it.

    Statistics and products are float32, whatever `x` is. Kernels sum in another order than the reference, so their
    values may lie one step from it. A row that holds NaN or an infinity gives the zero point where the scale is given,
    and the scale NaN where each row finds its own.

    Args:
        x: [..., K] float32, float16 or bfloat16.
        weight, bias: [K] of the dtype of `x`; None is 1 and 0.
        eps: added to the variance.
        scale: one element, float32, finite and above 0; None gives each row its own, as `quantize_int8_dynamic`.
        zero_point: one element, int32, with `scale` only; None is 0.
        dtype: torch.int8 or torch.uint8.

    Returns:
        q: [..., K] of `dtype`, contiguous; `scale` and `zero_point` as `int8_linear` takes them: those given, or
        [rows] float32 and [rows] int32.

    Raises:
        ValueError: a wrong dtype, device or shape, a scale that is not finite and above 0, or a zero point without one.

    Equivalent to `quantize_int8(F.layer_norm(x, (K,), weight, bias, eps), scale, zero_point, dtype)`.
    """
    op = f"layer_{OP}"
    return _norm_quantize(op, x, weight, bias, eps, True, scale, zero_point, dtype)


def rms_norm_quantize_int8(
    x: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    scale: Tensor | None = None,
    zero_point: Tensor | None = None,
    dtype: torch.dtype = torch.int8,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Divide each row (the last dimension) by its root mean square, and quantize it.

    Precision and special values are those of `layer_norm_quantize_int8`.

    Args:
        x: [..., K] float32, float16 or bfloat16.
        weight: [K] of the dtype of `x`; None is 1.
        eps: added to the mean square.
        scale: one element, float32, finite and above 0; None gives each row its own, as `quantize_int8_dynamic`.
        zero_point: one element, int32, with `scale` only; None is 0.
        dtype: torch.int8 or torch.uint8.

    Returns:
        q: [..., K] of `dtype`, contiguous; `scale` and `zero_point` as `int8_linear` takes them: those given, or
        [rows] float32 and [rows] int32.

    Raises:
        ValueError: a wrong dtype, device or shape, a scale that is not finite and above 0, or a zero point without one.

    Equivalent to `quantize_int8(F.rms_norm(x, (K,), weight, eps), scale, zero_point, dtype)`. Source: Zhang and
    Sennrich 2019, "Root Mean Square Layer Normalization".
    """
    op = f"rms_{OP}"
    return _norm_quantize(op, x, weight, None, eps, False, scale, zero_point, dtype)
