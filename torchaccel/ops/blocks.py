"""Block-compressed weights: the canonical form that the sparse ops take and checkpoints hold.

A convolution weight [O, C, kh, kw] is read as the matrix [O, kh * kw * C], input channels innermost, and cut into
blocks of (rows, columns). Only blocks with a nonzero are kept, row by row (block compressed sparse rows, BSR):
values [blocks, rows, columns], columns [blocks] (index of the block within its row, int32, ascending) and row_offsets
[O / rows + 1] (int32).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchaccel.ops import _check

# "2:4" keeps two of four neighbouring input channels; it is stored like "unstructured", element by element. "tile" is
# what a CUDA kernel skips; "tile+2:4" prunes 2:4 within the tiles that it keeps, which are twice as deep.
BLOCKS = {
    "unstructured": (1, 1),
    "1x4": (1, 4),
    "4x4": (4, 4),
    "16x1": (16, 1),
    "2:4": (1, 1),
    "tile": (64, 64),
    "tile+2:4": (64, 128),
}
TWO_FOUR = ("2:4", "tile+2:4")


def block_of(pattern: str) -> tuple[int, int]:
    """(output channels, input channels) of a pattern's block."""
    if pattern not in BLOCKS:
        _check.fail("sparsity", f"pattern is {pattern!r}, accepted are {', '.join(BLOCKS)}")
    return BLOCKS[pattern]


def fits(pattern: str, out_channels: int, in_channels: int) -> str | None:
    """Why a weight of these channels cannot be cut into the pattern's blocks, or None."""
    rows, columns = block_of(pattern)
    columns = 4 if pattern == "2:4" else columns
    channels = (("output", out_channels, rows), ("input", in_channels, columns))
    if not any(given % block for _, given, block in channels):
        return None
    needs = " and ".join(f"{side} channels divisible by {block}" for side, _, block in channels if block > 1)
    return f"{pattern} needs {needs}, given {out_channels} and {in_channels}"


def matrix_of(weight: Tensor) -> Tensor:
    """[O, C, kh, kw] as [O, kh * kw * C], input channels innermost; [O, C] as it is."""
    return weight.permute(0, 2, 3, 1).flatten(1) if weight.dim() == 4 else weight


def to_blocks(weight: Tensor, pattern: str) -> tuple[Tensor, Tensor, Tensor]:
    """Compress [O, C, kh, kw] (or [O, C]) of any dtype; returns (values, columns, row_offsets)."""
    if (reason := fits(pattern, weight.shape[0], weight.shape[1])) is not None:
        _check.fail("to_blocks", reason)
    rows, columns = block_of(pattern)
    matrix = matrix_of(weight)
    tiles = matrix.reshape(matrix.shape[0] // rows, rows, matrix.shape[1] // columns, columns).transpose(1, 2)
    kept = (tiles != 0).flatten(2).any(2)
    row_offsets = torch.zeros(kept.shape[0] + 1, dtype=torch.int32, device=weight.device)
    row_offsets[1:] = kept.sum(1).cumsum(0)
    return tiles[kept].contiguous(), kept.nonzero()[:, 1].to(torch.int32), row_offsets


def to_matrix(values: Tensor, columns: Tensor, row_offsets: Tensor, depth: int) -> Tensor:
    """The dense matrix [O, depth] of compressed blocks, depth = kh * kw * C."""
    rows, width = values.shape[1:]
    block_rows = row_offsets.numel() - 1
    tiles = values.new_zeros(block_rows, depth // width, rows, width)
    counts = (row_offsets[1:] - row_offsets[:-1]).long()
    row = torch.repeat_interleave(torch.arange(block_rows, device=values.device), counts, output_size=columns.numel())
    tiles[row, columns.long()] = values
    return tiles.transpose(1, 2).reshape(block_rows * rows, depth).contiguous()


def from_blocks(
    values: Tensor, columns: Tensor, row_offsets: Tensor, in_channels: int, kernel_size: Sequence[int]
) -> Tensor:
    """The dense weight [O, C, kh, kw] of compressed blocks."""
    taps = kernel_size[0] * kernel_size[1]
    matrix = to_matrix(values, columns, row_offsets, taps * in_channels)
    rows = matrix.shape[0]
    return matrix.view(rows, taps, in_channels).transpose(1, 2).reshape(rows, in_channels, *kernel_size).contiguous()


def check_shape(op: str, values: Tensor) -> None:
    """Check that values are blocks of a pattern."""
    accepted = sorted(set(BLOCKS.values()))
    if values.dim() != 3 or tuple(values.shape[1:]) not in accepted:
        shapes = ", ".join(f"[blocks, {rows}, {columns}]" for rows, columns in accepted)
        _check.fail(op, f"values has shape {tuple(values.shape)}, accepted are {shapes}")


def check(op: str, values: Tensor, columns: Tensor, row_offsets: Tensor, width: int) -> None:
    """Check compressed weights whose rows have `width` blocks; reads the indices, so not for a hot path."""
    if values.dim() != 3 or columns.dim() != 1 or row_offsets.dim() != 1 or values.shape[0] != columns.numel():
        _check.fail(
            op,
            f"values {tuple(values.shape)}, columns {tuple(columns.shape)} and row_offsets {tuple(row_offsets.shape)} "
            "do not match; accepted are [blocks, rows, columns], [blocks] and [block rows + 1]",
        )
    for name, index in (("columns", columns), ("row_offsets", row_offsets)):
        _check.dtype_in(op, name, index.dtype, (torch.int32,))
    if (
        row_offsets.numel() < 1
        or row_offsets[0] != 0
        or row_offsets[-1] != columns.numel()
        or (row_offsets.diff() < 0).any()
    ):
        _check.fail(op, f"row_offsets must rise from 0 to the {columns.numel()} blocks")
    if columns.numel() and (columns.min() < 0 or columns.max() >= width):
        _check.fail(
            op, f"columns reach from {int(columns.min())} to {int(columns.max())}, accepted are 0 to {width - 1}"
        )
    rising = columns.diff() > 0
    starts = row_offsets[1:-1].long()
    rising[starts[(starts > 0) & (starts < columns.numel())] - 1] = True  # a new row may start lower
    if not rising.all():
        at = int((~rising).nonzero()[0])
        _check.fail(
            op, f"columns go from {int(columns[at])} to {int(columns[at + 1])} within a row, accepted is rising"
        )
