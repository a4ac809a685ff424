"""The block-compressed weight of the sparse layers as buffers: empty ones to load into, and their checks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchaccel.ops import _check, _tiles, blocks

TILES = ("packed", "tile_columns", "tile_offsets")
"""The buffers that hold the weight as a kernel reads it; on a CPU the first of them at most."""


def block_grid(
    owner: str, pattern: str, out_channels: int, in_channels: int, kernel: tuple[int, int]
) -> tuple[int, int]:
    """(block rows, blocks per row) of a weight, or ValueError where its channels do not fit the pattern."""
    rows, columns = blocks.block_of(pattern)
    if (reason := blocks.fits(pattern, out_channels, in_channels)) is not None:
        _check.fail(owner, reason)
    return out_channels // rows, in_channels // columns * kernel[0] * kernel[1]


def empty(
    owner: str, pattern: str, count: int, grid: tuple[int, int], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """`count` blocks of zeros, spread evenly over the rows: valid (values, columns, row_offsets) of the right sizes."""
    rows, width = grid
    if not 0 <= count <= rows * width:
        _check.fail(owner, f"blocks is {count}, accepted are 0 to {rows * width}")
    row_offsets = torch.arange(rows + 1) * count // rows
    position = torch.arange(count)
    row = torch.searchsorted(row_offsets[1:], position, right=True)
    columns = position - row_offsets[row]
    return (
        torch.zeros(count, *blocks.block_of(pattern), dtype=dtype),
        columns.to(torch.int32),
        row_offsets.to(torch.int32),
    )


def set_tiles(module: nn.Module, made: _tiles.Packed | None) -> None:
    """Keep packed weights in the buffers of `TILES`."""
    for name, part in zip(TILES, made or (None, None, None), strict=True):
        setattr(module, name, part)


def why_no_gain(packed: Tensor | None, tile_columns: Tensor | None) -> str | None:
    """Why a CUDA kernel takes as long for these pruned weights as for dense ones, or None; None on a CPU as well."""
    if packed is None or packed.dtype != torch.int8 or tile_columns is not None or _tiles.holds_two_four(packed):
        return None
    return "its zeros leave no tile of 64 x 64 empty and are not 2:4, which is what CUDA kernels skip"


def check_state(owner: str, state: dict[str, Tensor], width: int) -> None:
    """Check the compressed weight in `state`, where all of it is there and real."""
    parts = [state.get(name) for name in ("values", "columns", "row_offsets")]
    if any(part is None or part.is_meta for part in parts):
        return
    blocks.check(owner, parts[0], parts[1], parts[2], width)  # type: ignore[arg-type]
