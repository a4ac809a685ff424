"""Sparsity patterns: magnitude scores, masks, and what pattern a weight of zeros follows."""

from __future__ import annotations

import torch
from torch import Tensor

from torchaccel.ops import blocks

PATTERNS = tuple(blocks.BLOCKS)
# The most regular first: a weight that is 4x4 sparse is 1x4 sparse as well.
_BY_ORDER = ("tile", "4x4", "16x1", "1x4")
# The share of zeros that lie in blocks of zeros; a weight may be zero by chance, too.
_IN_BLOCKS = 0.99


def _like_weight(matrix: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `blocks.matrix_of`, contiguous."""
    if len(shape) == 2:
        return matrix.contiguous()
    o, c, kh, kw = shape
    return matrix.reshape(o, kh, kw, c).permute(0, 3, 1, 2).contiguous()


def _tiles(weight: Tensor, pattern: str) -> Tensor:
    """[block rows, blocks per row, block rows * columns] of the pattern's blocks."""
    rows, columns = blocks.block_of(pattern)
    matrix = blocks.matrix_of(weight)
    tiles = matrix.reshape(matrix.shape[0] // rows, rows, matrix.shape[1] // columns, columns)
    return tiles.transpose(1, 2).flatten(2)


def check_fits(weight: Tensor, pattern: str) -> None:
    """Raise ValueError where a weight cannot be cut into the pattern's blocks."""
    if weight.dim() not in (2, 4):
        raise ValueError(f"sparsity: weight has shape {tuple(weight.shape)}, accepted are [O, C] and [O, C, kh, kw]")
    if (reason := blocks.fits(pattern, weight.shape[0], weight.shape[1])) is not None:
        raise ValueError(f"sparsity: {reason}")


def scores(weight: Tensor, pattern: str) -> Tensor:
    """The magnitude of each block, its Euclidean (L2) norm: [block rows, blocks per row] float32."""
    return _tiles(weight.detach().to(torch.float32), pattern).norm(dim=2)


def expand(kept: Tensor, pattern: str, shape: torch.Size) -> Tensor:
    """A mask of blocks [block rows, blocks per row] as a mask of weights of `shape`."""
    rows, columns = blocks.block_of(pattern)
    return _like_weight(kept.repeat_interleave(rows, 0).repeat_interleave(columns, 1), shape)


def largest(score: Tensor, amount: float) -> Tensor:
    """A mask of the blocks to keep: all but the `amount` with the smallest scores, and at least one."""
    keep = max(score.numel() - round(amount * score.numel()), 1)
    kept = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
    kept[score.flatten().topk(keep).indices] = True
    return kept.view(score.shape)


def two_of_four(weight: Tensor) -> Tensor:
    """A 2:4 mask: the two largest of each four neighbouring input channels, at each kernel position."""
    groups = blocks.matrix_of(weight.detach()).abs()
    groups = groups.reshape(groups.shape[0], -1, 4)
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(2, groups.topk(2, dim=2).indices, True)
    return _like_weight(kept.flatten(1), weight.shape)


def sparsity_of(weight: Tensor) -> float:
    """The share of a weight's elements that are zero, 0 to 1."""
    return 1.0 - torch.count_nonzero(weight).item() / max(weight.numel(), 1)


def pattern_of(weight: Tensor) -> str | None:
    """The most regular pattern that the zeros of a weight follow, or None where it has none.

    Args:
        weight: [O, C] or [O, C, kh, kw].

    Returns:
        "tile", "4x4", "16x1" or "1x4" where the zeros lie in blocks of zeros (all but a hundredth of them, by chance),
        "2:4" where each four neighbouring input channels hold at most two nonzeros, "tile+2:4" where there are tiles
        of zeros as well, else "unstructured".
    """
    zeros = weight.numel() - int(torch.count_nonzero(weight))
    if zeros == 0:
        return None
    for pattern in _BY_ORDER:
        if blocks.fits(pattern, weight.shape[0], weight.shape[1]) is None:
            rows, columns = blocks.block_of(pattern)
            empty = int((~_tiles(weight != 0, pattern).any(2)).sum())
            if empty * rows * columns >= _IN_BLOCKS * zeros:
                return pattern
    try:
        check_mask(weight, "2:4")
    except ValueError:
        return "unstructured"
    both = "tile+2:4"
    if blocks.fits(both, weight.shape[0], weight.shape[1]) is None and not _tiles(weight != 0, both).any(2).all():
        return both
    return "2:4"


def _place(weight: Tensor, row: int, column: int, rows: int, columns: int) -> str:
    """Where a block of the matrix view lies in the weight, in words."""
    in_channels = weight.shape[1]
    tap, channel = divmod(column, in_channels)
    place = f"output channels {row} to {row + rows - 1}, input channels {channel} to {channel + columns - 1}"
    return place if weight.dim() == 2 else f"{place}, kernel position {divmod(tap, weight.shape[3])}"


def check_mask(weight: Tensor, pattern: str) -> None:
    """Check that the zeros of a weight follow a pattern.

    Args:
        weight: [O, C] or [O, C, kh, kw], weights or a mask.
        pattern: one of `PATTERNS`.

    Raises:
        ValueError: channels that do not fit the pattern, or the first block that breaks it: where and how.
    """
    check_fits(weight, pattern)
    nonzero = weight != 0
    if pattern in blocks.TWO_FOUR:
        _check_two_of_four(nonzero)
    if pattern == "2:4":
        return
    rows, columns = blocks.block_of(pattern)
    whole = rows * columns // (2 if pattern in blocks.TWO_FOUR else 1)
    filled = _tiles(nonzero, pattern).sum(2)
    wrong = ((filled > 0) & (filled < whole)).nonzero()
    if len(wrong):
        row, block = wrong[0].tolist()
        raise ValueError(
            f"sparsity: {pattern} prunes whole blocks, found {int(filled[row, block])} nonzeros of {whole} at "
            f"{_place(nonzero, row * rows, block * columns, rows, columns)}"
        )


def _check_two_of_four(nonzero: Tensor) -> None:
    matrix = blocks.matrix_of(nonzero)
    counts = matrix.reshape(matrix.shape[0], -1, 4).sum(2)
    wrong = (counts > 2).nonzero()
    if not len(wrong):
        return
    row, group = wrong[0].tolist()
    message = (
        f"sparsity: 2:4 allows 2 nonzeros in four input channels, found {int(counts[row, group])} at "
        f"{_place(nonzero, row, group * 4, 1, 4)}"
    )
    across = blocks.matrix_of(nonzero.transpose(0, 1))
    if across.shape[1] % 4 == 0 and int(across.reshape(across.shape[0], -1, 4).sum(2).max()) <= 2:
        message += "; the mask is 2:4 along the output channels, accepted is along the input channels"
    raise ValueError(message)
