"""Activations of a chain: how their pixels lie in lanes, and their places in the arena; see csrc/cpu/chain.h."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from torchaccel.ops._chain_step import LANES, Step

LINE = 64
"""Bytes of a cache line, and of a vector of places."""

Pair = tuple[int, int]


class Window(NamedTuple):
    """What a layer reads for one output."""

    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    def reach(self) -> Pair:
        """From the first pixel that is read to the last one."""
        h, w = (d * (k - 1) for k, d in zip(self.kernel, self.dilation, strict=True))
        return h, w

    def output(self, h: int, w: int) -> Pair:
        sizes = zip((h, w), self.reach(), self.stride, self.padding, strict=True)
        oh, ow = ((size + 2 * p - r - 1) // s + 1 for size, r, s, p in sizes)
        return oh, ow

    def taps(self) -> list[Pair]:
        """Rows and columns from an output's first input."""
        return [
            (ky * self.dilation[0] - self.padding[0], kx * self.dilation[1] - self.padding[1])
            for ky in range(self.kernel[0])
            for kx in range(self.kernel[1])
        ]


class Grid(NamedTuple):
    """How an activation is cut into the lanes of a vector; see `ChainGrid` in csrc/cpu/chain.h."""

    images: int
    h: int
    w: int
    block_h: int
    block_w: int

    def vectors(self) -> int:
        return self.block_h * self.block_w

    def scaled(self, h: int, w: int) -> Grid:
        """That of the input of layers with such strides."""
        return self._replace(block_h=self.block_h * h, block_w=self.block_w * w)

    def output(self, stride: Pair, h: int, w: int) -> Grid | None:
        """That of h x w outputs with such strides, or None where they do not fall on the same lanes."""
        if self.block_h % stride[0] or self.block_w % stride[1]:
            return None
        y = self._replace(block_h=self.block_h // stride[0], block_w=self.block_w // stride[1])
        return y if y.h * y.block_h >= h and y.w * y.block_w >= w else None


def best_grid(images: int, y: Pair, x: Pair, stride: Pair, pointwise: bool = False) -> Grid:
    """The grid with the fewest vectors that holds outputs of size y, and scaled by the stride inputs of size x.

    Among these the one with the smallest halo; in a chain without any, the one with the most neighbours in a vector.
    """
    lanes = LANES // images

    def block(axis: int, parts: int) -> int:
        return max(-(-y[axis] // parts), -(-x[axis] // (stride[axis] * parts)))

    grids = [Grid(images, h, lanes // h, block(0, h), block(1, lanes // h)) for h in range(1, lanes + 1)]
    return min(grids, key=lambda g: (g.vectors(), g.block_w if pointwise else g.block_h + g.block_w, g.block_h))


def flattened(h: int, w: int) -> Pair:
    """The shape in which images are cut best if no layer reads a pixel's neighbours: rows of a vector, or one row."""
    return (h * w // LANES, LANES) if h * w % LANES == 0 else (1, h * w)


@dataclass(eq=False)
class Area:
    """A part of the arena: planes x rows x pitch vectors, of which the blocks' own pixels are a part."""

    planes: int
    grid: Grid | None = None
    # Rows above and below, columns left and right of a block.
    halo: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    planar: bool = False  # whether each plane lies in one piece: [planes][rows][pitch]
    at: int = 0
    steps: list[int] = field(default_factory=list)  # that write or read it
    holds: list[Plane] = field(default_factory=list)

    def pitch(self) -> int:
        assert self.grid is not None
        return self.halo[2] + self.grid.block_w + self.halo[3]

    def rows(self) -> int:
        assert self.grid is not None
        return self.halo[0] + self.grid.block_h + self.halo[1]

    def plane_bytes(self) -> int:
        """From a plane to the next: an odd number of cache lines, so that they spread over the cache's sets."""
        return ((self.rows() if self.planar else 1) * self.pitch() | 1) * LINE

    def row_bytes(self) -> int:
        return self.pitch() * LINE if self.planar else self.planes * self.plane_bytes()

    def nbytes(self) -> int:
        return self.planes * self.plane_bytes() * (1 if self.planar else self.rows())


class Plane:
    """An activation: some planes of an area, all of them but for a part of a concatenation."""

    def __init__(
        self, planes: int, h: int, w: int, zero_point: int = 0, grid: Grid | None = None, planar: bool = False
    ) -> None:
        self.planes, self.h, self.w, self.zero_point = planes, h, w, zero_point
        self.area, self.before = Area(planes, grid, planar=planar, holds=[self]), 0  # planes of the area before its own
        self.padding: int | None = None  # what the halo holds outside of the image now, as a word

    @property
    def grid(self) -> Grid | None:
        return self.area.grid

    @grid.setter
    def grid(self, grid: Grid) -> None:
        self.area.grid = grid

    def take(self, part: Plane, before: int) -> bool:
        """Make a part one of this activation's planes, unless it is one of another's already."""
        area = part.area
        if part.planes < area.planes or area is self.area:
            return False
        for plane in area.holds:
            plane.area, plane.before = self.area, plane.before + before
        self.area.holds += area.holds
        return True

    def fill(self, padding: int) -> None:
        """Note that the halo, a part of that of all that share planes with this one, now holds some padding."""
        for plane in self.area.holds:
            within = self.before <= plane.before and plane.before + plane.planes <= self.before + self.planes
            apart = plane.before + plane.planes <= self.before or self.before + self.planes <= plane.before
            if not apart:
                plane.padding = padding if within else None

    def reach(self, window: Window) -> None:
        """Make room for what a window reads around the blocks."""
        halo = self.area.halo
        for axis, (p, r, s) in enumerate(zip(window.padding, window.reach(), window.stride, strict=True)):
            before, after = 2 * axis, 2 * axis + 1
            halo[before] = max(halo[before], p)
            halo[after] = max(halo[after], r - p - (s - 1))

    def first(self) -> int:
        """Where the first pixel of the first block lies."""
        area = self.area
        own = area.at + self.before * area.plane_bytes()
        return own + area.halo[0] * area.row_bytes() + LINE * area.halo[2]

    def plane_bytes(self) -> int:
        return self.area.plane_bytes()

    def row_bytes(self) -> int:
        return self.area.row_bytes()

    def around(self) -> tuple[Tensor, Tensor]:
        """The vectors of a halo [vectors, 3]: where each goes, where it comes from, which row of lanes it takes; and
        those rows [rows, LANES], with -1 for padding."""
        assert self.grid is not None
        images, gh, gw, bh, bw = self.grid
        halo = self.area.halo
        lanes = torch.arange(images * gh * gw)
        i, j, first = lanes // gw % gh, lanes % gw, lanes // (gh * gw) * (gh * gw)
        vectors: list[tuple[int, int, int]] = []
        rows: dict[tuple[int, ...], int] = {}
        for r in range(-halo[0], bh + halo[1]):
            for c in range(-halo[2], bw + halo[3]):
                y, x = i * bh + r, j * bw + c
                there = (y >= 0) & (y < self.h) & (x >= 0) & (x < self.w)
                if 0 <= r < bh and 0 <= c < bw and bool(there.all()):
                    continue
                lane = first + y.div(bh, rounding_mode="floor") * gw + x.div(bw, rounding_mode="floor")
                row = (*torch.where(there, lane, -1).tolist(), *[-1] * (LANES - len(lanes)))
                source = r % bh * self.row_bytes() + c % bw * LINE
                vectors.append((r * self.row_bytes() + c * LINE, source, rows.setdefault(row, len(rows))))
        return torch.tensor(vectors), torch.tensor(list(rows))


@dataclass(eq=False)
class Entry:
    """A step with what it reads and writes; the places are filled in once all are known."""

    step: Step
    x: Plane | None = None
    y: Plane | None = None
    residual: Plane | None = None
    window: Window = field(default_factory=Window)
    padding: int = 0  # outside of the image, as a word
    spread: int = 1  # rows and columns that an output becomes
    columns: Tensor = field(
        default_factory=lambda: torch.empty(0, dtype=torch.long)
    )  # of [taps, planes], read by offsets
    weight_bytes: int = 0

    def planes(self) -> list[Plane]:
        return [plane for plane in (self.x, self.y, self.residual) if plane is not None]


def fit(areas: list[Area]) -> int:
    """First fit, by when each area is written first and read last; returns where the last one ends."""
    placed: list[tuple[int, int, Area]] = []
    for area in sorted(areas, key=lambda a: -a.nbytes()):
        size, at = area.nbytes(), 0
        for begin, end, other in sorted(placed, key=lambda p: p[0]):
            apart = max(area.steps) < min(other.steps) or max(other.steps) < min(area.steps)
            if not apart and at < end and begin < at + size:
                at = end
        area.at = at
        placed.append((at, at + size, area))
    return max((end for _, end, _ in placed), default=0)
