"""Weights in the layout that the CUDA kernels read: tiles of 64 output channels by 64 bytes (csrc/cuda/weights.cuh).

A tile is the exact image of shared memory: the 16-byte chunk c of row r lies at chunk c ^ (r >> 1 & 3). A 2:4 tile
holds the kept values of 128 bytes of K and after them their places, in the order in which mma.sp's lanes take them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from torchaccel.ops import _check
from torchaccel.ops._library import has_kernel, too_old

BAND = 64  # output channels of a tile
_ROW = 64  # bytes of a tile's row
# Skipping a tile saves its work, but bands of unequal length finish at different times.
_SKIP_FROM = 0.1


class Packed(NamedTuple):
    """Tiles of a weight [O, K], and where they belong once some are skipped."""

    tiles: Tensor  # int8 [bands, tiles along K, bytes of a tile], or [kept, bytes of a tile]
    columns: Tensor | None  # [kept] int32: the place of each kept tile along K
    offsets: Tensor | None  # [bands + 1] int32 into columns


def wanted(op: str, device: torch.device) -> bool:
    """Whether the kernel that serves `op` on `device` reads tiles."""
    return device.type == "cuda" and has_kernel(op, device) and too_old(device) is None


def is_two_four(matrix: Tensor) -> bool:
    """Whether at most two of every four neighbours along K are not zero."""
    k = matrix.shape[1] // 4 * 4
    tail = int((matrix[:, k:] != 0).sum(1).max()) if k < matrix.shape[1] and matrix.shape[0] else 0
    return tail <= 2 and bool(((matrix[:, :k].reshape(-1, 4) != 0).sum(1) <= 2).all())


def pack(matrix: Tensor, two_four: bool | None = None, skip: bool | None = None) -> Packed:
    """Lay out a weight for the CUDA kernels.

    Args:
        matrix: [O, K] int8, float16 or bfloat16; of a convolution with input channels innermost.
        two_four: keep two of four values; None where the weight allows it. The kernels want it where C (K of a plain
            product) is whole 16 bytes, so that four neighbours are input channels of one kernel position.
        skip: leave out tiles of zeros; None where that is a tenth of them. The kernels want it where C is whole 16
            bytes. False for both reads no values, so that nothing waits for the device.

    Raises:
        ValueError: `two_four` for a weight with more than two values in a group of four.
    """
    _check.dtype_in("pack", "matrix", matrix.dtype, (torch.int8, torch.float16, torch.bfloat16))
    if matrix.is_floating_point():
        matrix = matrix + 0.0  # -0.0, as a product with a mask leaves it, has a bit set
    allowed = two_four is not False and is_two_four(matrix)
    if two_four and not allowed:
        _check.fail("pack", "matrix has more than two nonzero values among four neighbours along K, 2:4 accepts two")
    tiles = (_two_four(matrix) if allowed else _dense(matrix)).contiguous()
    if skip is False:
        return Packed(tiles, None, None)
    kept = (tiles[..., : BAND * _ROW] != 0).any(-1)
    if kept.numel() == 0 or (skip is None and float(kept.float().mean()) > 1.0 - _SKIP_FROM):
        return Packed(tiles, None, None)
    kept[0, 0] |= ~kept.any()  # a kernel takes no empty list for one of all tiles
    offsets = torch.zeros(tiles.shape[0] + 1, dtype=torch.int32, device=matrix.device)
    offsets[1:] = kept.sum(1).cumsum(0)
    return Packed(tiles[kept], kept.nonzero()[:, 1].to(torch.int32), offsets)


def pack_whole(matrix: Tensor) -> Tensor:
    """The tiles of a weight without a look at its values: what an op packs for itself at a call."""
    return pack(matrix, two_four=False, skip=False).tiles


def holds_two_four(tiles: Tensor | None) -> bool:
    """Whether these are 2:4 tiles, by the size of one."""
    return tiles is not None and tiles.shape[-1] != BAND * _ROW


def _padded(matrix: Tensor, depth: int) -> Tensor:
    """[O, K] with zeros up to whole tiles of `depth` elements along K."""
    rows, k = matrix.shape
    return F.pad(matrix, (0, -k % depth, 0, -rows % BAND))


def _dense(matrix: Tensor) -> Tensor:
    """[bands, tiles along K, 4096] int8."""
    full = _padded(matrix, _ROW // matrix.element_size()).contiguous().view(torch.int8)
    bands, k_tiles = full.shape[0] // BAND, full.shape[1] // _ROW
    chunks = full.view(bands, BAND, k_tiles, 4, 16).transpose(1, 2)  # [bands, k_tiles, row, chunk, 16]
    row = torch.arange(BAND, device=matrix.device)
    source = torch.arange(4, device=matrix.device) ^ (row >> 1 & 3)[:, None]  # [row, chunk]
    return chunks[:, :, row[:, None], source].reshape(bands, k_tiles, BAND * _ROW)


def _two_four(matrix: Tensor) -> Tensor:
    """[bands, tiles along K, 4096 and the places' bytes] int8."""
    size = matrix.element_size()
    depth = 2 * _ROW // size  # K of a tile
    full = _padded(matrix, depth).contiguous()
    groups = full.view(full.shape[0], -1, 4)
    # Nonzero values first, in order; zeros fill up what is missing.
    first_two = torch.sort((groups == 0).to(torch.int8), dim=2, stable=True).indices[..., :2].sort(dim=2).values
    tiles = _dense(groups.gather(2, first_two).flatten(1))
    nibbles = (first_two[..., 0] | first_two[..., 1] << 2).view(full.shape[0], -1, depth // 4)  # [O, k_tiles, groups]
    bands, k_tiles = tiles.shape[:2]
    # Words of places: 8 groups of int8 in 32 bits, 4 groups of halves in 16; each tile has two steps of two words.
    in_word = 8 if size == 1 else 4
    shift = 4 * torch.arange(in_word, device=matrix.device)
    words = (nibbles.view(full.shape[0], k_tiles, 2, 2, in_word) << shift).sum(-1)  # [O, k_tiles, step, half of K]
    words = words.view(bands, BAND // 16, 2, 8, k_tiles, 2, 2)  # [band, fragment, row / 8, g, k_tile, step, half]
    if size == 1:  # lane 4 g + t takes (half, row / 8) = (t / 2, t % 2); [step, fragment, g, half, row / 8]
        places = words.permute(0, 4, 5, 1, 3, 6, 2).reshape(bands, k_tiles, -1)
    else:  # rows g and g + 8 share a word; lane 4 g + t takes (step, half) = (t / 2, t % 2): [fragment, g, step, half]
        pairs = words[:, :, 0] | words[:, :, 1] << 16  # [band, fragment, g, k_tile, step, half]
        places = pairs.permute(0, 3, 1, 2, 4, 5).reshape(bands, k_tiles, -1)
    # int64 to the same 32 bits of int32.
    places = torch.where(places >= 1 << 31, places - (1 << 32), places).to(torch.int32)
    return torch.cat([tiles, places.contiguous().view(torch.int8)], dim=2)
