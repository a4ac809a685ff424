"""int8_add: the sum of two quantized tensors with an activation, as floats or requantized, in one pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchaccel.ops import _check, _epilogue
from torchaccel.ops._library import define, run, too_old

OP = "int8_add"


def _real(q: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    shifted = q.to(torch.int32) if zero_point is None else q.to(torch.int32) - zero_point
    return shifted.to(torch.float32) * scale


def reference(
    a: Tensor,
    b: Tensor,
    scale_a: Tensor,
    zero_point_a: Tensor | None,
    scale_b: Tensor,
    zero_point_b: Tensor | None,
    activation: str,
    out_dtype: torch.dtype,
    scale_out: Tensor | None,
    zero_point_out: Tensor | None,
) -> Tensor:
    """The op in plain PyTorch, with its schema's arguments."""
    y = _epilogue.activate(_real(a, scale_a, zero_point_a) + _real(b, scale_b, zero_point_b), activation)
    if scale_out is not None:
        y = _epilogue.saturate(y, scale_out, 0 if zero_point_out is None else zero_point_out, out_dtype)
    return torch.empty_like(a, dtype=out_dtype).copy_(y)


def _fake(a, b, scale_a, zero_point_a, scale_b, zero_point_b, activation, out_dtype, scale_out, zero_point_out):
    return torch.empty_like(a, dtype=out_dtype)


define(
    f"{OP}(Tensor a, Tensor b, Tensor scale_a, Tensor? zero_point_a, Tensor scale_b, Tensor? zero_point_b, "
    "str activation, ScalarType out_dtype, Tensor? scale_out, Tensor? zero_point_out) -> Tensor",
    reference,
    _fake,
)


def supports(device: torch.device, *, out_dtype: torch.dtype) -> str | None:
    """Why no native kernel serves these facts on `device`, or None where one does."""
    if device.type == "cpu" and out_dtype not in (torch.float32, *_check.INT8):
        return f"the CPU kernel writes float32, int8 or uint8, not {out_dtype}"
    return too_old(device)


def int8_add(
    a: Tensor,
    b: Tensor,
    scale_a: Tensor,
    zero_point_a: Tensor | None,
    scale_b: Tensor,
    zero_point_b: Tensor | None,
    activation: str = "none",
    out_dtype: torch.dtype = torch.float32,
    scale_out: Tensor | None = None,
    zero_point_out: Tensor | None = None,
) -> Tensor:
    """Add two quantized tensors where the sum cannot be the residual of a convolution.

    `y = act(float(a - zero_point_a) * scale_a + float(b - zero_point_b) * scale_b)`, each step rounded to float32; with
    an int8 `out_dtype` the result is `rint(y * (1 / scale_out)) + zero_point_out`, saturating.

    Args:
        a, b: int8 or uint8 each, of one shape; `b` is copied where its strides are not those of `a`.
        scale_a, scale_b: [1] float32.
        zero_point_a, zero_point_b: [1] int32; None is 0.
        activation: "none", "relu", "relu6", "gelu" or "silu".
        out_dtype: float32, float16, bfloat16, int8 or uint8.
        scale_out, zero_point_out: [1] float32 and [1] int32, for an int8 `out_dtype` and only for it.

    Returns:
        A tensor of `out_dtype` with the shape and, where it is dense, the strides of `a`.

    Raises:
        ValueError: a wrong shape, dtype or device.

    Equivalent to `torch.relu((a - zero_point_a) * scale_a + (b - zero_point_b) * scale_b)`.
    """

    def validate() -> None:
        _check.dtype_in(OP, "a", a.dtype, _check.INT8)
        _check.dtype_in(OP, "b", b.dtype, _check.INT8)
        _check.sizes(OP, "b", b, tuple(a.shape))
        _check.device_of(
            OP, a, b=b, scale_a=scale_a, zero_point_a=zero_point_a, scale_b=scale_b, zero_point_b=zero_point_b,
            scale_out=scale_out,
        )  # fmt: skip
        for name, value in (
            ("scale_a", scale_a), ("zero_point_a", zero_point_a), ("scale_b", scale_b), ("zero_point_b", zero_point_b),
        ):  # fmt: skip
            _check.sizes(OP, name, value, (1,))
        _check.known_activation(OP, activation)
        _check.output(OP, out_dtype, scale_out, zero_point_out)

    def call(op: Callable) -> Tensor:
        return op(a, b, scale_a, zero_point_a, scale_b, zero_point_b, activation, out_dtype, scale_out, zero_point_out)

    return run(OP, a.device, supports(a.device, out_dtype=out_dtype), reference, validate, call)
