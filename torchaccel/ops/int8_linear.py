"""int8_linear: an int8 matrix product with scales, bias, activation and requantization in one pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchaccel.ops import _check, _epilogue, _tiles
from torchaccel.ops._library import define, run, too_old

OP = "int8_linear"


def _reference(
    a: Tensor,
    b: Tensor,
    colsum: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    zero_point: Tensor | None,
    bias: Tensor | None,
    activation: str,
    out_dtype: torch.dtype,
    scale_out: Tensor | None,
    zero_point_out: Tensor | None,
    packed: Tensor | None,
) -> Tensor:
    n, k = b.shape
    # float64 holds every int32 sum exactly, and its matrix product runs on every device.
    acc = (a.reshape(a.shape[:-1].numel(), k).to(torch.float64) @ b.to(torch.float64).t()).to(torch.int32)
    y = _epilogue.finish(
        acc,
        colsum,
        scale_a,
        scale_b,
        zero_point,
        bias,
        None,
        None,
        None,
        activation,
        out_dtype,
        scale_out,
        zero_point_out,
    )
    return y.reshape(*a.shape[:-1], n)


def _fake(a, b, colsum, scale_a, scale_b, zero_point, bias, activation, out_dtype, scale_out, zero_point_out, packed):
    return torch.empty((*a.shape[:-1], b.shape[0]), dtype=out_dtype, device=a.device)


define(
    f"{OP}(Tensor a, Tensor b, Tensor colsum, Tensor scale_a, Tensor scale_b, Tensor? zero_point, Tensor? bias, "
    "str activation, ScalarType out_dtype, Tensor? scale_out, Tensor? zero_point_out, Tensor? packed) -> Tensor",
    _reference,
    _fake,
)


def supports(device: torch.device, *, out_dtype: torch.dtype) -> str | None:
    """Why no native kernel serves these facts on `device`, or None where one does."""
    if device.type == "cpu" and out_dtype not in (torch.float32, *_check.INT8):
        return f"the CPU kernel writes float32, int8 or uint8, not {out_dtype}"
    return too_old(device)


def int8_linear(
    a: Tensor,
    b: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    zero_point: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str = "none",
    out_dtype: torch.dtype = torch.float32,
    scale_out: Tensor | None = None,
    zero_point_out: Tensor | None = None,
    colsum: Tensor | None = None,
    packed: Tensor | None = None,
) -> Tensor:
    """Multiply quantized activations by quantized weights, exactly in int32, and finish in one pass.

    `y = act(float(a @ b.T - zero_point * colsum) * (scale_a * scale_b) + bias)`; with an int8 `out_dtype` the result
    is `rint(y * (1 / scale_out)) + zero_point_out`, saturating.

    Args:
        a: [..., K] int8 or uint8; M is the product of the leading sizes.
        b: [N, K] int8 in [-127, 127].
        scale_a: [1] or [M] float32.
        scale_b: [N] float32.
        zero_point: [1] or [M] int32, of `a`; None is 0.
        bias: [N] float32.
        activation: "none", "relu", "relu6", "gelu" or "silu".
        out_dtype: float32, float16, bfloat16, int8 or uint8.
        scale_out, zero_point_out: [1] float32 and [1] int32, for an int8 `out_dtype` and only for it.
        colsum: [N] int32, `b.sum(1)`; computed where it is not given.
        packed: what `pack_int8(b)` returned, for a kernel that wants its own layout; on CUDA packed anew at each call
            where it is not given.

    Returns:
        [..., N] of `out_dtype`, contiguous.

    Raises:
        ValueError: a wrong shape, dtype or device, or K above the bound up to which int32 is exact.

    Equivalent to `torch.relu(F.linear((a - zero_point) * scale_a, b * scale_b[:, None], bias))` in exact arithmetic.
    """

    def validate() -> None:
        _check.dtype_in(OP, "a", a.dtype, _check.INT8)
        _check.dtype_in(OP, "b", b.dtype, (torch.int8,))
        _check.device_of(OP, a, b=b, colsum=colsum, packed=packed)
        if b.dim() != 2:
            _check.fail(OP, f"b has shape {tuple(b.shape)}, accepted is [N, K]")
        n, k = b.shape
        if a.dim() == 0 or a.shape[-1] != k:
            _check.fail(OP, f"a has K={a.shape[-1] if a.dim() else None}, b has K={k}")
        _check.depth(OP, k, a.dtype)
        m = a.shape[:-1].numel()
        _check.epilogue(
            OP, a, m, n, scale_a, scale_b, zero_point, bias, activation, out_dtype, scale_out, zero_point_out
        )

    def call(op: Callable) -> Tensor:
        return op(
            a, b, b.sum(1, dtype=torch.int32) if colsum is None else colsum, scale_a, scale_b, zero_point, bias,
            activation, out_dtype, scale_out, zero_point_out,
            _tiles.pack_whole(b) if packed is None and _tiles.wanted(OP, a.device) else packed,
        )  # fmt: skip

    return run(OP, a.device, supports(a.device, out_dtype=out_dtype), _reference, validate, call)
