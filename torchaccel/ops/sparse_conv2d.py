"""sparse_conv2d: a float convolution whose pruned weights are kept in blocks (weight-sparse)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from torchaccel.ops import _check, _conv, _epilogue, blocks
from torchaccel.ops._library import define

OP = "sparse_conv2d"


def _reference(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    row_offsets: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str,
) -> Tensor:
    weight = blocks.from_blocks(values, columns, row_offsets, x.shape[1], kernel_size)
    y = F.conv2d(x, weight, bias, tuple(stride), tuple(padding), tuple(dilation))
    if residual is not None:
        y = y + residual
    y = _epilogue.activate(y, activation)
    return _conv.empty_nhwc(y.shape, y.dtype, y.device).copy_(y)


def _fake(x, values, columns, row_offsets, bias, residual, kernel_size, stride, padding, dilation, activation):
    size = _conv.output_size(x.shape[2:], kernel_size, stride, padding, dilation)
    out_channels = (row_offsets.shape[0] - 1) * values.shape[1]
    return _conv.empty_nhwc((x.shape[0], out_channels, *size), x.dtype, x.device)


define(
    f"{OP}(Tensor x, Tensor values, Tensor columns, Tensor row_offsets, Tensor? bias, Tensor? residual, "
    "int[] kernel_size, int[] stride, int[] padding, int[] dilation, str activation) -> Tensor",
    _reference,
    _fake,
)


def sparse_conv2d(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    row_offsets: Tensor,
    kernel_size: Sequence[int],
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    activation: str = "none",
) -> Tensor:
    """Convolve with pruned float weights: `act(conv(x, weight) + bias + residual)`.

    Args:
        x: [N, C, H, W] float32, float16 or bfloat16.
        values: [blocks, rows, columns] of the dtype of `x`, see `ops.blocks`; columns: [blocks] int32;
            row_offsets: [O / rows + 1] int32. Indices are checked where a module or a checkpoint takes them in.
        kernel_size: (kh, kw).
        bias: [O]; residual: [N, O, OH, OW]; both of the dtype of `x`.
        stride, padding, dilation: two integers each (height, width).
        activation: "none", "relu", "relu6", "gelu" or "silu"; after the residual.

    Returns:
        [N, O, OH, OW] of the dtype of `x`, channels_last.

    Raises:
        ValueError: a wrong shape, dtype or device.

    Equivalent to `F.conv2d(x, from_blocks(values, columns, row_offsets, C, kernel_size), bias, stride, padding,
    dilation)`, then the residual and the activation.
    """
    _check.dtype_in(OP, "x", x.dtype, _check.FLOATS)
    _check.dtype_in(OP, "values", values.dtype, (x.dtype,))
    _check.device_of(OP, x, values=values, columns=columns, row_offsets=row_offsets, bias=bias, residual=residual)
    if values.dim() != 3:
        _check.fail(OP, f"values has shape {tuple(values.shape)}, accepted is [blocks, rows, columns]")
    out_channels = (row_offsets.numel() - 1) * values.shape[1]
    size = _conv.check(OP, x, x.shape[1] if x.dim() == 4 else 0, kernel_size, stride, padding, dilation)
    if x.shape[1] % values.shape[2]:
        _check.fail(OP, f"x has C={x.shape[1]}, accepted are multiples of the block's {values.shape[2]}")
    _check.sizes(OP, "bias", bias, (out_channels,))
    _check.sizes(OP, "residual", residual, (x.shape[0], out_channels, *size))
    _check.known_activation(OP, activation)
    return torch.ops.torchaccel.sparse_conv2d(
        x, values, columns, row_offsets, bias, residual, kernel_size, stride, padding, dilation, activation
    )
