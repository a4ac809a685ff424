"""int8_conv2d: an int8 convolution with scales, bias, residual, activation and requantization in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torchaccel.ops import _check, _conv, _epilogue, _tiles, blocks
from torchaccel.ops._library import define, run, too_old

OP = "int8_conv2d"


def reference(
    a: Tensor,
    b: Tensor,
    colsum: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    zero_point: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    scale_residual: Tensor | None,
    zero_point_residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str,
    out_dtype: torch.dtype,
    scale_out: Tensor | None,
    zero_point_out: Tensor | None,
    packed: Tensor | None,
) -> Tensor:
    """The op in plain PyTorch, with its schema's arguments."""
    acc = _conv.exact_conv(a, b, zero_point, stride, padding, dilation, groups)
    n, _, height, width = acc.shape
    y = _epilogue.finish(
        _conv.rows(acc),
        colsum,
        _conv.per_pixel(scale_a, height * width),
        scale_b,
        None if zero_point is None else _conv.per_pixel(zero_point, height * width),
        bias,
        None if residual is None else _conv.rows(residual),
        scale_residual,
        zero_point_residual,
        activation,
        out_dtype,
        scale_out,
        zero_point_out,
    )
    return _conv.from_rows(y, n, height, width)


def _fake(
    a, b, colsum, scale_a, scale_b, zero_point, bias, residual, scale_residual, zero_point_residual,
    stride, padding, dilation, groups, activation, out_dtype, scale_out, zero_point_out, packed,
):  # fmt: skip
    size = _conv.output_size(a.shape[2:], b.shape[2:], stride, padding, dilation)
    return _conv.empty_nhwc((a.shape[0], b.shape[0], *size), out_dtype, a.device)


define(
    f"{OP}(Tensor a, Tensor b, Tensor colsum, Tensor scale_a, Tensor scale_b, Tensor? zero_point, Tensor? bias, "
    "Tensor? residual, Tensor? scale_residual, Tensor? zero_point_residual, "
    "int[] stride, int[] padding, int[] dilation, int groups, str activation, ScalarType out_dtype, "
    "Tensor? scale_out, Tensor? zero_point_out, Tensor? packed) -> Tensor",
    reference,
    _fake,
)


def supports(
    device: torch.device,
    *,
    kernel_size: Sequence[int],
    out_dtype: torch.dtype,
    residual_dtype: torch.dtype | None = None,
    groups: int = 1,
) -> str | None:
    """Why no native kernel serves these facts on `device`, or None where one does."""
    if device.type == "cpu" and out_dtype not in (torch.float32, *_check.INT8):
        return f"the CPU kernel writes float32, int8 or uint8, not {out_dtype}"
    if device.type == "cpu" and residual_dtype not in (None, torch.float32, *_check.INT8):
        return f"the CPU kernel adds a residual of float32, int8 or uint8, not {residual_dtype}"
    if device.type != "cuda":
        return None
    if groups != 1:
        return f"the CUDA kernel takes one group, not {groups}"
    return _conv.too_large(kernel_size) or too_old(device)


def int8_conv2d(
    a: Tensor,
    b: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    zero_point: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    scale_residual: Tensor | None = None,
    zero_point_residual: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    activation: str = "none",
    out_dtype: torch.dtype = torch.float32,
    scale_out: Tensor | None = None,
    zero_point_out: Tensor | None = None,
    colsum: Tensor | None = None,
    packed: Tensor | None = None,
) -> Tensor:
    """Convolve quantized activations with quantized weights, exactly in int32, and finish in one pass.

    `y = act(float(conv(a, b) - zero_point * colsum) * (scale_a * scale_b) + bias + residual)`, where padding holds
    the zero point; with an int8 `out_dtype` the result is `rint(y * (1 / scale_out)) + zero_point_out`, saturating.

    Args:
        a: [N, C, H, W] int8 or uint8; taken as channels_last, converted where it is not.
        b: [O, C / groups, kh, kw] int8 in [-127, 127].
        scale_a: [1] or [N] float32.
        scale_b: [O] float32.
        zero_point: [1] or [N] int32, of `a`; None is 0.
        bias: [O] float32.
        residual: [N, O, OH, OW] float32, or int8/uint8 with `scale_residual` [1] and `zero_point_residual` [1].
        stride, padding, dilation: two integers each (height, width).
        groups: as in `F.conv2d`.
        activation: "none", "relu", "relu6", "gelu" or "silu"; after the residual.
        out_dtype: float32, float16, bfloat16, int8 or uint8.
        scale_out, zero_point_out: [1] float32 and [1] int32, for an int8 `out_dtype` and only for it.
        colsum: [O] int32, `b.sum((1, 2, 3))`; computed where it is not given.
        packed: what `pack_int8` returned for `b`; on CUDA packed anew at each call where it is not given.

    Returns:
        [N, O, OH, OW] of `out_dtype`, channels_last.

    Raises:
        ValueError: a wrong shape, dtype or device, or a depth above the bound up to which int32 is exact.

    Equivalent to `torch.relu(F.conv2d((a - zero_point) * scale_a, b * scale_b[:, None, None, None], bias, stride,
    padding, dilation, groups) + residual)` in exact arithmetic.
    """

    def validate() -> None:
        _check.dtype_in(OP, "a", a.dtype, _check.INT8)
        _check.dtype_in(OP, "b", b.dtype, (torch.int8,))
        _check.device_of(OP, a, b=b, colsum=colsum, packed=packed)
        if b.dim() != 4 or groups < 1 or b.shape[0] % groups:
            _check.fail(OP, f"b has shape {tuple(b.shape)} with groups={groups}, accepted is [O, C / groups, kh, kw]")
        size = _conv.check(OP, a, b.shape[1] * groups, b.shape[2:], stride, padding, dilation)
        _check.depth(OP, b[0].numel() if b.shape[0] else 0, a.dtype)
        n, o = a.shape[0], b.shape[0]
        _check.epilogue(
            OP, a, n, o, scale_a, scale_b, zero_point, bias, activation, out_dtype, scale_out, zero_point_out
        )
        _conv.check_residual(OP, a, (n, o, *size), residual, scale_residual, zero_point_residual)

    def call(op: Callable) -> Tensor:
        return op(
            _conv.as_nhwc(a), b, b.sum((1, 2, 3), dtype=torch.int32) if colsum is None else colsum, scale_a, scale_b,
            zero_point, bias, None if residual is None else _conv.as_nhwc(residual), scale_residual,
            zero_point_residual, stride, padding, dilation, groups, activation, out_dtype, scale_out, zero_point_out,
            _tiles.pack_whole(blocks.matrix_of(b)) if reason is None and packed is None and _tiles.wanted(OP, a.device)
            else packed,
        )  # fmt: skip

    residual_dtype = None if residual is None else residual.dtype
    kernel_size = b.shape[2:] if b.dim() == 4 else (1, 1)
    reason = supports(
        a.device, kernel_size=kernel_size, out_dtype=out_dtype, residual_dtype=residual_dtype, groups=groups
    )
    return run(OP, a.device, reason, reference, validate, call)
