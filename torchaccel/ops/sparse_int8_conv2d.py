"""sparse_int8_conv2d: an int8 convolution whose weights are kept in blocks (weight-sparse, pruned)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torchaccel.ops import _check, _conv, _tiles, blocks
from torchaccel.ops._library import define, run
from torchaccel.ops.int8_conv2d import reference as dense_reference
from torchaccel.ops.int8_conv2d import supports as dense_supports

OP = "sparse_int8_conv2d"
CPU_BLOCKS = ((1, 4), (4, 4))


def _reference(
    a: Tensor,
    values: Tensor,
    columns: Tensor,
    row_offsets: Tensor,
    colsum: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    zero_point: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    scale_residual: Tensor | None,
    zero_point_residual: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str,
    out_dtype: torch.dtype,
    scale_out: Tensor | None,
    zero_point_out: Tensor | None,
    packed: Tensor | None,
    tile_columns: Tensor | None,
    tile_offsets: Tensor | None,
) -> Tensor:
    b = blocks.from_blocks(values, columns, row_offsets, a.shape[1], kernel_size)
    return dense_reference(
        a, b, colsum, scale_a, scale_b, zero_point, bias, residual, scale_residual, zero_point_residual, stride,
        padding, dilation, 1, activation, out_dtype, scale_out, zero_point_out, None,
    )  # fmt: skip


def _fake(
    a, values, columns, row_offsets, colsum, scale_a, scale_b, zero_point, bias, residual, scale_residual,
    zero_point_residual, kernel_size, stride, padding, dilation, activation, out_dtype, scale_out, zero_point_out,
    packed, tile_columns, tile_offsets,
):  # fmt: skip
    size = _conv.output_size(a.shape[2:], kernel_size, stride, padding, dilation)
    return _conv.empty_nhwc((a.shape[0], scale_b.shape[0], *size), out_dtype, a.device)


define(
    f"{OP}(Tensor a, Tensor values, Tensor columns, Tensor row_offsets, Tensor colsum, Tensor scale_a, Tensor scale_b, "
    "Tensor? zero_point, Tensor? bias, Tensor? residual, Tensor? scale_residual, Tensor? zero_point_residual, "
    "int[] kernel_size, int[] stride, int[] padding, int[] dilation, str activation, ScalarType out_dtype, "
    "Tensor? scale_out, Tensor? zero_point_out, "
    "Tensor? packed, Tensor? tile_columns, Tensor? tile_offsets) -> Tensor",
    _reference,
    _fake,
)


def supports(
    device: torch.device,
    *,
    block: tuple[int, int],
    kernel_size: Sequence[int],
    out_dtype: torch.dtype,
    residual_dtype: torch.dtype | None = None,
) -> str | None:
    """Why no native kernel serves these facts on `device`, or None where one does."""
    if device.type == "cpu" and block not in CPU_BLOCKS:
        return f"the CPU kernel takes blocks of 1x4 and 4x4, not {block[0]}x{block[1]}"
    return dense_supports(device, kernel_size=kernel_size, out_dtype=out_dtype, residual_dtype=residual_dtype)


def pack_sparse_int8(
    values: Tensor, columns: Tensor, row_offsets: Tensor, in_channels: int, kernel_size: Sequence[int]
) -> _tiles.Packed | None:
    """Lay out compressed int8 weights for the CUDA kernel; whatever their blocks, it skips tiles of zeros and uses 2:4.

    Args:
        values, columns, row_offsets: see `ops.blocks`; in_channels: C; kernel_size: (kh, kw).

    Returns:
        What the arguments `packed`, `tile_columns` and `tile_offsets` take, or None where no kernel wants it.
    """
    if not _tiles.wanted(OP, values.device):
        return None
    matrix = blocks.to_matrix(values, columns, row_offsets, kernel_size[0] * kernel_size[1] * in_channels)
    choice = None if in_channels % 16 == 0 else False
    return _tiles.pack(matrix, two_four=choice, skip=choice)


def colsum_of(values: Tensor, row_offsets: Tensor) -> Tensor:
    """[O] int32: the sum of each output channel's weights, from its blocks."""
    block_rows, rows = row_offsets.numel() - 1, values.shape[1]
    counts = (row_offsets[1:] - row_offsets[:-1]).long()
    row = torch.repeat_interleave(torch.arange(block_rows, device=values.device), counts, output_size=values.shape[0])
    sums = torch.zeros(block_rows, rows, dtype=torch.int32, device=values.device)
    return sums.index_add_(0, row, values.sum(2, dtype=torch.int32)).flatten()


def sparse_int8_conv2d(
    a: Tensor,
    values: Tensor,
    columns: Tensor,
    row_offsets: Tensor,
    kernel_size: Sequence[int],
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
    activation: str = "none",
    out_dtype: torch.dtype = torch.float32,
    scale_out: Tensor | None = None,
    zero_point_out: Tensor | None = None,
    colsum: Tensor | None = None,
    packed: Tensor | None = None,
    tile_columns: Tensor | None = None,
    tile_offsets: Tensor | None = None,
) -> Tensor:
    """Convolve quantized activations with pruned, quantized weights; pruned blocks cost nothing.

    The numbers are those of `int8_conv2d` with `blocks.from_blocks(values, columns, row_offsets, C, kernel_size)`.

    Args:
        a: [N, C, H, W] int8 or uint8; taken as channels_last, converted where it is not.
        values: [blocks, rows, columns] int8 in [-127, 127], see `ops.blocks`; C is a multiple of columns.
        columns: [blocks] int32; row_offsets: [O / rows + 1] int32. Indices are checked where a module or a
            checkpoint takes them in, not at every call.
        kernel_size: (kh, kw).
        colsum: [O] int32, the sum of each output channel's weights; computed where it is not given.
        packed, tile_columns, tile_offsets: what `pack_sparse_int8` returned; on CUDA packed anew at each call, with
            nothing skipped, where they are not given.
        Others: as in `int8_conv2d`.

    Returns:
        [N, O, OH, OW] of `out_dtype`, channels_last.

    Raises:
        ValueError: a wrong shape, dtype or device.

    Equivalent to `int8_conv2d(a, from_blocks(values, columns, row_offsets, C, kernel_size), ...)`.
    """

    def validate() -> None:
        _check.dtype_in(OP, "a", a.dtype, _check.INT8)
        _check.dtype_in(OP, "values", values.dtype, (torch.int8,))
        _check.device_of(
            OP, a, values=values, columns=columns, row_offsets=row_offsets, colsum=colsum,
            packed=packed, tile_columns=tile_columns, tile_offsets=tile_offsets,
        )  # fmt: skip
        blocks.check_shape(OP, values)
        n, o = a.shape[0], (row_offsets.numel() - 1) * values.shape[1]
        size = _conv.check(OP, a, a.shape[1] if a.dim() == 4 else 0, kernel_size, stride, padding, dilation)
        if a.shape[1] % values.shape[2]:
            _check.fail(OP, f"a has C={a.shape[1]}, accepted are multiples of the block's {values.shape[2]}")
        _check.sizes(OP, "columns", columns, (values.shape[0],))
        _check.tiles(OP, packed, tile_columns, tile_offsets)
        _check.depth(OP, a.shape[1] * kernel_size[0] * kernel_size[1], a.dtype)
        _check.epilogue(
            OP, a, n, o, scale_a, scale_b, zero_point, bias, activation, out_dtype, scale_out, zero_point_out
        )
        _conv.check_residual(OP, a, (n, o, *size), residual, scale_residual, zero_point_residual)

    def call(op: Callable) -> Tensor:
        tiles = packed
        if packed is None and reason is None and _tiles.wanted(OP, a.device):
            depth = kernel_size[0] * kernel_size[1] * a.shape[1]
            tiles = _tiles.pack_whole(blocks.to_matrix(values, columns, row_offsets, depth))
        return op(
            _conv.as_nhwc(a), values, columns, row_offsets,
            colsum_of(values, row_offsets) if colsum is None else colsum, scale_a, scale_b, zero_point, bias,
            None if residual is None else _conv.as_nhwc(residual), scale_residual, zero_point_residual,
            kernel_size, stride, padding, dilation, activation, out_dtype, scale_out, zero_point_out,
            tiles, tile_columns, tile_offsets,
        )  # fmt: skip

    residual_dtype = None if residual is None else residual.dtype
    block = (values.shape[1], values.shape[2]) if values.dim() == 3 else (0, 0)
    reason = supports(
        a.device, block=block, kernel_size=kernel_size, out_dtype=out_dtype, residual_dtype=residual_dtype
    )
    return run(OP, a.device, reason, _reference, validate, call)
