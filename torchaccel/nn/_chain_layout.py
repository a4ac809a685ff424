"""Activations of an int8 chain: how their pixels lie, and their places in the arena; see csrc/cpu/chain.h."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from torchaccel.ops.conv_chain import LANES, Kind, Step

LINE = 64
"""Bytes of a cache line, and of a vector of places."""


@dataclass(eq=False)
class Plane:
    """An activation: [planes][rows][pitch] places of four channels; with phases where a stride reads it."""

    planes: int
    h: int
    w: int
    zero_point: int
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)
    phases: tuple[int, int] = (1, 1)
    # What is read around the pixels, in places: above, below, left, right.
    halo: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    pitch: int = 0
    lanes: int = 1
    at: int = 0
    steps: list[int] = field(default_factory=list)  # that write or read it

    def is_copy(self) -> bool:
        """Whether it was laid out for one window, its padding before it."""
        return self.stride != (1, 1) or self.pad != (0, 0)

    def reach(self, top: int, bottom: int, left: int, right: int) -> None:
        self.halo = [max(a, b) for a, b in zip(self.halo, (top, bottom, left, right), strict=True)]

    def rows(self) -> int:
        """Of one phase."""
        return -(-(self.h + self.pad[0]) // self.stride[0]) + self.halo[0] + self.halo[1]

    def least_pitch(self) -> int:
        return -(-(self.w + self.pad[1]) // self.stride[1]) + max(self.halo[2], self.halo[3])

    def lead(self) -> int:
        """Bytes from where a plane begins to its first pixel, or to the first place of its first phase."""
        places = (self.halo[0] * self.pitch + self.halo[2]) * self.lanes
        return -(-places // LANES) * LINE

    def vectors(self) -> int:
        return -(-((self.h - 1) * self.pitch + self.w) * self.lanes // LANES)

    def phase_bytes(self) -> int:
        return -(-4 * (self.rows() * self.pitch * self.lanes + LANES) // LINE) * LINE

    def plane_bytes(self) -> int:
        """An odd number of cache lines, so that planes spread over the cache's sets."""
        if self.is_copy():
            lines = self.phases[0] * self.phases[1] * self.phase_bytes() // LINE
        else:
            places = LANES * self.vectors() + (self.halo[1] * self.pitch + self.halo[3]) * self.lanes
            lines = self.lead() // LINE + -(-places // LANES)
        return (lines | 1) * LINE


@dataclass(eq=False)
class Entry:
    """A step with what it reads and writes; the places are filled in once all are known."""

    step: Step
    x: Plane | None = None
    y: Plane | None = None
    residual: Plane | None = None
    # Of what the step's offsets are made: columns, and the taps that these count along (tap, plane of the input).
    columns: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    taps: list[tuple[int, int, int]] = field(default_factory=list)

    def planes(self) -> list[Plane]:
        return [plane for plane in (self.x, self.y, self.residual) if plane is not None]

    def over_places(self) -> bool:
        """Whether it runs over places, rather than over the pixels of one image."""
        return self.step.kind in (Kind.CONV, Kind.MAX_POOL)

    def weight_bytes(self) -> int:
        if self.step.kind != Kind.CONV:
            return 0
        each = self.step.planes * 16 if self.step.block_rows == 0 else 4 * self.step.block_rows + 4
        return self.columns.numel() * each


def fit(planes: list[Plane], start: int) -> int:
    """First fit, by when each activation is written first and read last; returns where the last one ends."""
    placed: list[tuple[int, int, Plane]] = []
    for plane in sorted(planes, key=lambda p: -p.planes * p.plane_bytes()):
        size, at = plane.planes * plane.plane_bytes() + 2 * LINE, start
        for begin, end, other in sorted(placed, key=lambda p: p[0]):
            apart = max(plane.steps) < min(other.steps) or max(other.steps) < min(plane.steps)
            if not apart and at < end and begin < at + size:
                at = end
        plane.at = at
        placed.append((at, at + size, plane))
    return max((end for _, end, _ in placed), default=start) + 4 * LINE
