"""int8_linear_dynamic: an int8 matrix product of floats, each row quantized on the way by its own range."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchaccel.ops import _check
from torchaccel.ops._library import define, has_kernel, run
from torchaccel.ops.int8_linear import int8_linear
from torchaccel.ops.int8_linear import supports as product_supports
from torchaccel.ops.quantize_int8 import quantize_int8_dynamic
from torchaccel.ops.quantize_int8 import supports as quantization_supports

OP = "int8_linear_dynamic"


def _reference(
    x: Tensor,
    b: Tensor,
    colsum: Tensor,
    scale_b: Tensor,
    bias: Tensor | None,
    activation: str,
    dtype: torch.dtype,
    out_dtype: torch.dtype,
    scale_out: Tensor | None,
    zero_point_out: Tensor | None,
    packed: Tensor | None,
) -> Tensor:
    a, scale_a, zero_point = quantize_int8_dynamic(x, dtype)
    return int8_linear(
        a, b, scale_a, scale_b, zero_point, bias, activation, out_dtype, scale_out, zero_point_out, colsum, packed
    )


def _fake(x, b, colsum, scale_b, bias, activation, dtype, out_dtype, scale_out, zero_point_out, packed):
    return torch.empty((*x.shape[:-1], b.shape[0]), dtype=out_dtype, device=x.device)


define(
    f"{OP}(Tensor x, Tensor b, Tensor colsum, Tensor scale_b, Tensor? bias, str activation, ScalarType dtype, "
    "ScalarType out_dtype, Tensor? scale_out, Tensor? zero_point_out, Tensor? packed) -> Tensor",
    _reference,
    _fake,
)


def supports(device: torch.device, *, dtype: torch.dtype, out_dtype: torch.dtype) -> str | None:
    """Why no native kernel takes an input of `dtype` on `device`, or None where one does."""
    return quantization_supports(device, dtype=dtype) or product_supports(device, out_dtype=out_dtype)


def int8_linear_dynamic(
    x: Tensor,
    b: Tensor,
    scale_b: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    dtype: torch.dtype = torch.uint8,
    out_dtype: torch.dtype = torch.float32,
    scale_out: Tensor | None = None,
    zero_point_out: Tensor | None = None,
    colsum: Tensor | None = None,
    packed: Tensor | None = None,
) -> Tensor:
    """`quantize_int8_dynamic` and `int8_linear` in one pass: to the bit what the two compute one after the other.

    Args:
        x: [..., K] float32, float16 or bfloat16; M is the product of the leading sizes.
        b: [N, K] int8 in [-127, 127].
        scale_b: [N] float32.
        bias: [N] float32.
        activation: "none", "relu", "relu6", "gelu" or "silu".
        dtype: torch.uint8 or torch.int8, which the rows are quantized to.
        out_dtype: float32, float16, bfloat16, int8 or uint8.
        scale_out, zero_point_out: [1] float32 and [1] int32, for an int8 `out_dtype` and only for it.
        colsum, packed: as `int8_linear` takes them.

    Returns:
        [..., N] of `out_dtype`, contiguous.

    Raises:
        ValueError: a wrong shape, dtype or device, or K above the bound up to which int32 is exact.

    Equivalent to `a, s, z = quantize_int8_dynamic(x, dtype); int8_linear(a, b, s, scale_b, z, bias)`.
    """

    def validate() -> None:
        _check.dtype_in(OP, "x", x.dtype, _check.FLOATS)
        _check.dtype_in(OP, "dtype", dtype, _check.INT8)
        _check.dtype_in(OP, "b", b.dtype, (torch.int8,))
        _check.device_of(OP, x, b=b, colsum=colsum, scale_b=scale_b, bias=bias, scale_out=scale_out, packed=packed)
        if b.dim() != 2 or x.dim() == 0 or x.shape[-1] != b.shape[1]:
            _check.fail(OP, f"x has shape {tuple(x.shape)}, b has {tuple(b.shape)}; accepted are [..., K] and [N, K]")
        n, k = b.shape
        _check.depth(OP, k, dtype)
        _check.sizes(OP, "scale_b", scale_b, (n,))
        _check.sizes(OP, "bias", bias, (n,))
        _check.known_activation(OP, activation)
        _check.output(OP, out_dtype, scale_out, zero_point_out)

    def call(op: Callable) -> Tensor:
        sums = b.sum(1, dtype=torch.int32) if colsum is None else colsum
        return op(x, b, sums, scale_b, bias, activation, dtype, out_dtype, scale_out, zero_point_out, packed)

    if x.device.type == "cuda" and not has_kernel(OP, x.device):
        return call(_reference)  # both ops have kernels there, and check their arguments
    return run(OP, x.device, supports(x.device, dtype=x.dtype, out_dtype=out_dtype), _reference, validate, call)
