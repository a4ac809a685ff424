"""Dense float32 convolutions of a chain by Winograd's method along rows; see csrc/cpu/chain_winograd.inl."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from torchaccel.nn._chain_layout import Grid, Window
from torchaccel.nn._chain_weights import GROUP
from torchaccel.ops._winograd import OUTPUTS, matrices

LEAST_DEPTH, LEAST_CHANNELS = 20, 16
"""Rows of input that an output sums up, and output channels, for which transforms are worth it."""
_MOST_PRODUCTS = 0.7
"""Of those of the direct form; what is left is for the transforms."""
_CHUNK = 90
"""Steps whose inputs stay in L1 beside their sums."""


class Weights(NamedTuple):
    """Of a layer at each point, as csrc/cpu/chain.h has them."""

    values: Tensor  # of each chunk of each point [ceil(O / GROUP), steps, GROUP]
    columns: Tensor  # [steps] of [rows of the kernel, planes]
    first: Tensor  # [points * chunks + 1]
    chunks: int


def taps(window: Window) -> int:
    """Of the longest of the kernels, one for each column of a stride, that make up a row."""
    return -(-window.kernel[1] // window.stride[1])


def points(window: Window) -> int:
    return taps(window) + OUTPUTS - 1


def _shorter(window: Window) -> int:
    """Of those kernels, the shorter ones, which need no point at infinity."""
    return -window.kernel[1] % window.stride[1]


def fits(weight: Tensor, window: Window) -> bool:
    """Whether a layer may be worth it, in blocks of some width."""
    o, c, kh, _ = weight.shape
    return taps(window) in (3, 4) and window.dilation[1] == 1 and c * kh >= LEAST_DEPTH and o >= LEAST_CHANNELS


def strips(grid: Grid) -> int:
    """Of a block's row of outputs."""
    return -(-grid.block_w // OUTPUTS)


def saves(window: Window, grid: Grid) -> bool:
    """Whether blocks of outputs take few enough products."""
    products = window.stride[1] * points(window) - _shorter(window)  # of a strip, for a row of the kernel
    return strips(grid) * products <= _MOST_PRODUCTS * grid.block_w * window.kernel[1]


def transformed(weight: Tensor, window: Window) -> Weights:
    """The weights [O, C, kh, kw] at the points of the input's planes [points, phases, C]."""
    o, c, kh, kw = weight.shape
    phases, longest, n = window.stride[1], taps(window), points(window)
    padded = F.pad(weight.double(), (0, phases * longest - kw, 0, 0, 0, 0, 0, -o % GROUP))
    by_phase = padded.unflatten(3, (longest, phases))  # [O, C, kh, taps, phases]
    at_points = torch.einsum("nt,ocrtf->nofcr", matrices(longest)[2], by_phase)
    planes = torch.arange(n * phases * c).view(n, phases, c, 1)
    columns = torch.arange(kh) * planes.numel() + planes
    chunks = -(-phases * c * kh // _CHUNK)
    values, read = list[Tensor](), list[Tensor]()
    for p in range(n):
        needed = phases if p < n - 1 else phases - _shorter(window)
        steps = at_points[p, :, :needed].reshape(-1, GROUP, needed * c * kh).transpose(1, 2)
        values += [chunk.flatten() for chunk in steps.tensor_split(chunks, 1)]
        read += columns[p, :needed].flatten().tensor_split(chunks)
    first = torch.tensor([0, *map(len, read)]).cumsum(0)
    return Weights(torch.cat(values).float(), torch.cat(read), first, chunks)
