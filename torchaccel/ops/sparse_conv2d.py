"""sparse_conv2d: a float convolution whose pruned weights are kept in blocks (weight-sparse)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from torchaccel.ops import _check, _conv, _epilogue, _tiles, blocks
from torchaccel.ops._library import define, has_kernel, run, too_old

OP, PACK = "sparse_conv2d", "pack_sparse_f32"


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
    packed: Tensor | None,
    tile_columns: Tensor | None,
    tile_offsets: Tensor | None,
) -> Tensor:
    weight = blocks.from_blocks(values, columns, row_offsets, x.shape[1], kernel_size)
    y = F.conv2d(x, weight, bias, tuple(stride), tuple(padding), tuple(dilation))
    if residual is not None:
        y = y + residual
    return _empty(x, y.shape).copy_(_epilogue.activate(y, activation))


def _empty(x: Tensor, shape: Sequence[int]) -> Tensor:
    """The output: channels_last, on a CPU contiguous where `x` is not channels_last."""
    if _conv.is_nhwc(x) or x.device.type != "cpu":
        return _conv.empty_nhwc(shape, x.dtype, x.device)
    return x.new_empty(shape)


def _fake(
    x, values, columns, row_offsets, bias, residual, kernel_size, stride, padding, dilation, activation,
    packed, tile_columns, tile_offsets,
):  # fmt: skip
    size = _conv.output_size(x.shape[2:], kernel_size, stride, padding, dilation)
    out_channels = (row_offsets.shape[0] - 1) * values.shape[1]
    return _empty(x, (x.shape[0], out_channels, *size))


define(
    f"{OP}(Tensor x, Tensor values, Tensor columns, Tensor row_offsets, Tensor? bias, Tensor? residual, "
    "int[] kernel_size, int[] stride, int[] padding, int[] dilation, str activation, "
    "Tensor? packed, Tensor? tile_columns, Tensor? tile_offsets) -> Tensor",
    _reference,
    _fake,
)


def _no_reference(values: Tensor, columns: Tensor, row_offsets: Tensor, depth: int) -> Tensor:
    raise RuntimeError(f"{PACK}: the layout belongs to the native CPU kernel, which packs before tracing")


define(f"{PACK}(Tensor values, Tensor columns, Tensor row_offsets, int depth) -> Tensor", _no_reference, _no_reference)


def _refused(dtype: torch.dtype, in_channels: int, kernel_size: Sequence[int]) -> str | None:
    """What the CUDA kernel does not take, or None."""
    if dtype not in (torch.float16, torch.bfloat16):
        return f"the CUDA kernel takes torch.float16 and torch.bfloat16, not {dtype}"
    if in_channels % 8:
        return f"the CUDA kernel takes input channels in multiples of 8, not {in_channels}"
    return _conv.too_large(kernel_size)


def supports(device: torch.device, *, dtype: torch.dtype, in_channels: int, kernel_size: Sequence[int]) -> str | None:
    """Why no native kernel serves these facts on `device`, or None where one does."""
    if device.type == "cpu" and dtype != torch.float32:
        return f"the CPU kernel takes torch.float32, not {dtype}"
    return None if device.type != "cuda" else _refused(dtype, in_channels, kernel_size) or too_old(device)


def pack_sparse(
    values: Tensor, columns: Tensor, row_offsets: Tensor, in_channels: int, kernel_size: Sequence[int]
) -> _tiles.Packed | None:
    """Lay out compressed weights for the kernel of their device.

    The CPU kernel takes float32: single nonzeros, or columns of 4 rows where blocks are a multiple of that high. The
    CUDA kernel skips tiles of zeros and uses 2:4, whatever the blocks.

    Args:
        values: [blocks, rows, columns] float, with columns and row_offsets as in `ops.blocks`.
        in_channels: C; kernel_size: (kh, kw).

    Returns:
        What the arguments `packed`, `tile_columns` and `tile_offsets` take, or None where no kernel wants it.
    """
    depth = kernel_size[0] * kernel_size[1] * in_channels
    if values.dtype == torch.float32 and has_kernel(PACK, values.device):
        return _tiles.Packed(torch.ops.torchaccel.pack_sparse_f32(values, columns, row_offsets, depth), None, None)
    if _refused(values.dtype, in_channels, kernel_size) is not None or not _tiles.wanted(OP, values.device):
        return None
    return _tiles.pack(blocks.to_matrix(values, columns, row_offsets, depth))


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
    packed: Tensor | None = None,
    tile_columns: Tensor | None = None,
    tile_offsets: Tensor | None = None,
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
        packed, tile_columns, tile_offsets: what `pack_sparse` returned; packed anew at each call, on CUDA with nothing
            skipped, where they are not given.

    Returns:
        [N, O, OH, OW] of the dtype of `x`, channels_last; on a CPU contiguous, unless `x` is channels_last.

    Raises:
        ValueError: a wrong shape, dtype or device.

    Equivalent to `F.conv2d(x, from_blocks(values, columns, row_offsets, C, kernel_size), bias, stride, padding,
    dilation)`, then the residual and the activation.
    """

    def validate() -> None:
        _check.dtype_in(OP, "x", x.dtype, _check.FLOATS)
        _check.dtype_in(OP, "values", values.dtype, (x.dtype,))
        _check.device_of(
            OP, x, values=values, columns=columns, row_offsets=row_offsets, bias=bias, residual=residual,
            packed=packed, tile_columns=tile_columns, tile_offsets=tile_offsets,
        )  # fmt: skip
        blocks.check_shape(OP, values)
        out_channels = (row_offsets.numel() - 1) * values.shape[1]
        size = _conv.check(OP, x, x.shape[1] if x.dim() == 4 else 0, kernel_size, stride, padding, dilation)
        if x.shape[1] % values.shape[2]:
            _check.fail(OP, f"x has C={x.shape[1]}, accepted are multiples of the block's {values.shape[2]}")
        _check.sizes(OP, "columns", columns, (values.shape[0],))
        for name, given, shape in (
            ("bias", bias, (out_channels,)),
            ("residual", residual, (x.shape[0], out_channels, *size)),
        ):
            _check.sizes(OP, name, given, shape)
            if given is not None:
                _check.dtype_in(OP, name, given.dtype, (x.dtype,))
        _check.known_activation(OP, activation)
        _check.tiles(OP, packed, tile_columns, tile_offsets)

    def call(op: Callable) -> Tensor:
        tiles = packed
        if packed is None and reason is None and _tiles.wanted(OP, x.device):
            depth = kernel_size[0] * kernel_size[1] * x.shape[1]
            tiles = _tiles.pack_whole(blocks.to_matrix(values, columns, row_offsets, depth))
        return op(
            x, values, columns, row_offsets, bias, residual, kernel_size, stride, padding, dilation, activation,
            tiles, tile_columns, tile_offsets,
        )  # fmt: skip

    reason = supports(x.device, dtype=x.dtype, in_channels=x.shape[1] if x.dim() == 4 else 0, kernel_size=kernel_size)
    return run(OP, x.device, reason, _reference, validate, call)
