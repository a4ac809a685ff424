"""Weights of a chain's convolutions as its kernels read them; see csrc/cpu/chain.h."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from torchaccel.nn._chain_layout import LINE, Window
from torchaccel.ops._chain_step import SLAB, TILE

GROUP = 4
"""Output channels that are computed together."""
_QUADS = {3: (1, 2), 5: (2, 4), 7: (2, 2)}
"""By the widest kernel: quads of a row, and neighbouring outputs that read them; `ChainQuads` in csrc/cpu/chain.h."""
_TILE_BYTES = 40 << 10
"""Inputs of a tile that stay in L1 beside its sums."""
_LEAST_STEPS = 10
"""Nonzeros of a row, on average, that are worth loading its sums again."""


class Groups(NamedTuple):
    """Pruned float32 weights in groups of four output channels."""

    values: Tensor  # [steps, GROUP]
    columns: Tensor  # [steps, GROUP], or [steps] where all four share them; of [taps, planes]
    groups: Tensor  # [groups, 2 + GROUP]: first step, steps, channels
    first: Tensor  # [slabs * chunks + 1]: the first group of each
    chunks: int
    shared: bool


def blocks_of_4(weight: Tensor) -> Tensor:
    """int8 [O, C, kh, kw] as [ceil(O / 4), kh * kw * ceil(C / 4), 4, 4]: blocks of 4 outputs x 4 inputs."""
    o, c, kh, kw = weight.shape
    padded = F.pad(weight, (0, 0, 0, 0, 0, -c % 4, 0, -o % 4))
    tiles = padded.view(-(-o // 4), 4, -(-c // 4), 4, kh, kw)
    return tiles.permute(0, 4, 5, 2, 1, 3).reshape(tiles.shape[0], -1, 4, 4)


class Blocks(NamedTuple):
    """int8 weights in blocks of four output channels x a plane."""

    values: Tensor  # [blocks, 4, 4]
    columns: Tensor  # [blocks], of [taps, planes]
    bounds: Tensor  # [ceil(O / 4) + 1]: the first block of each four channels


def grouped_blocks(weight: Tensor, groups: int) -> Blocks:
    """int8 [O, C / groups, kh, kw] as the blocks that hold its nonzeros: of a depthwise layer, diagonals."""
    o, c, kh, kw = weight.shape
    row, inner, tap = weight.flatten(2).nonzero(as_tuple=True)
    channel = row // (o // groups) * c + inner
    planes = -(-groups * c // 4)
    places = (row // 4 * kh * kw + tap) * planes + channel // 4
    kept, block = places.unique(return_inverse=True)
    values = weight.new_zeros(len(kept), 4, 4)
    values[block, row % 4, channel % 4] = weight.flatten(2)[row, inner, tap]
    of_four = kh * kw * planes
    counts = torch.bincount(kept // of_four, minlength=-(-o // 4))
    return Blocks(values, kept % of_four, F.pad(counts.cumsum(0), (1, 0)))


def quads(weight: Tensor) -> Tensor | None:
    """int8 [C, 1, kh, kw] as [ceil(C / 4), kh, quads of a row, outputs, 4 channels, 4 taps]; None if it is too wide."""
    width = weight.shape[3]
    if width > max(_QUADS):
        return None
    of_row, outputs = next(of for widest, of in _QUADS.items() if width <= widest)
    shifted = [F.pad(weight[:, 0], (o, 4 * of_row - width - o, 0, 0, 0, -len(weight) % 4)) for o in range(outputs)]
    return torch.stack(shifted).unflatten(3, (of_row, 4)).unflatten(1, (-1, 4)).permute(1, 3, 4, 0, 2, 5)


def _chunk_channels(weight: Tensor, window: Window) -> int:
    """Input channels of a chunk: what a tile reads of them stays in L1, if they are worth it."""
    channels, taps = weight.shape[1], weight.shape[2] * weight.shape[3]
    across = TILE if window.kernel[1] == 1 else (TILE - 1) * window.stride[1] + window.reach()[1] + 1
    fitting = _TILE_BYTES // (window.kernel[0] * across * LINE)
    density = max(float(weight.count_nonzero()) / weight.numel(), 1e-9)
    least = min(int(_LEAST_STEPS / (density * taps)), channels)
    chunks = max(round(channels / max(fitting, least, 1)), 1)
    return -(-channels // chunks)


def group(weight: Tensor, shared: bool, window: Window, groups: int = 1) -> Groups:
    """float32 [O, C / groups, kh, kw] in groups of output channels.

    Channels of a slab that have about as many nonzeros in a chunk share a group, so that few steps are wasted and loops
    end where they are predicted to.

    Args:
        shared: whether each four channels, from a multiple of 4 on, have their nonzeros in the same places.
        groups: of the convolution; a channel's chunk is that of its place in its group.
    """
    o, c, kh, kw = weight.shape
    chunk = _chunk_channels(weight, window)
    slabs, chunks = -(-o // SLAB), -(-c // chunk)
    # A unit is what has nonzeros of its own: a channel, or four, the last one repeated where there are fewer.
    size = GROUP if shared else 1
    rows = weight.reshape(o, c, kh * kw)[torch.arange(o + -o % size).clamp(max=o - 1)]
    unit, channel, tap = (rows.view(-1, size, c, kh * kw) != 0).any(1).nonzero(as_tuple=True)
    units, in_slab, members = -(-o // size), SLAB // size, GROUP // size
    lists = unit // in_slab * chunks + channel // chunk
    place = lists * in_slab + unit % in_slab
    order = torch.argsort(place, stable=True)
    unit, channel, tap, place = unit[order], channel[order], tap[order], place[order]
    counts = torch.bincount(place, minlength=slabs * chunks * in_slab).view(slabs, chunks, in_slab)
    rank = torch.arange(len(place)) - (counts.flatten().cumsum(0) - counts.flatten())[place]
    # Units that do not exist come last, and fill a group up by repeating its last unit.
    exists = (torch.arange(slabs * in_slab) < units).view(slabs, 1, in_slab)
    ranked = torch.argsort(torch.where(exists, counts, -1), dim=2, descending=True, stable=True)
    taken = torch.where(exists, counts, 0).gather(2, ranked).view(slabs, chunks, -1, members)[..., 0]
    kept = exists.expand_as(counts).gather(2, ranked).view(slabs, chunks, -1, members)
    alive = kept[..., 0]
    last = (kept.sum(-1) - 1).clamp(min=0)
    member_of = torch.minimum(torch.arange(members), last[..., None])
    made = (ranked.view(slabs, chunks, -1, members).gather(3, member_of)) + (
        torch.arange(slabs).view(-1, 1, 1, 1) * in_slab
    )
    channels = (made[..., None] * size + torch.arange(size)).flatten(3).clamp(max=o - 1)
    steps = taken[alive]
    starts = steps.cumsum(0) - steps
    made_of = torch.cat([starts[:, None], steps[:, None], channels[alive]], 1)
    first = F.pad(alive.sum(2).flatten().cumsum(0), (1, 0))

    # Where each nonzero goes.
    position = torch.empty_like(ranked).scatter_(2, ranked, torch.arange(in_slab).expand_as(ranked)).flatten()[place]
    numbers = alive.flatten().cumsum(0).view_as(alive) - 1
    at = starts[numbers.view(slabs * chunks, -1)[place // in_slab, position // members]] + rank
    total = int(steps.sum())
    columns = torch.full((total, members), -1, dtype=torch.long)
    columns[at, position % members] = (tap * groups + unit * size // (o // groups)) * c + channel
    values = torch.zeros(total, members, size)
    values[at, position % members] = rows.view(-1, size, c, kh * kw)[unit, :, channel, tap]
    filling = torch.repeat_interleave(member_of[alive], steps, dim=0)
    columns, values = columns.gather(1, filling), values.gather(1, filling[..., None].expand_as(values))
    columns = torch.where(columns < 0, columns[:, :1], columns)
    return Groups(values.flatten(1), columns.squeeze(1) if shared else columns, made_of, first, chunks, shared)
