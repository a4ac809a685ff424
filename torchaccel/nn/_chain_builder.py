"""What plans of all chains have in common: steps over activations, their layout, and their places in the arena.

Layers become steps first. Then each activation gets a grid, taken over from the layer's input where that costs no
copy, and what reads over the edges of blocks gets a halo, filled by a step of its own. Last, each gets a part of the
arena for as long as it is read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from torchaccel.nn._chain_layout import LINE, Area, Entry, Grid, Pair, Plane, Window, best_grid, fit
from torchaccel.ops._chain_step import CURVES, Kind, Step

LATE_BYTES = 256 << 10
"""Weights of one step, a quarter of a usual L2."""
WASTE = 1.1
"""How many times the fewest vectors an output may take before its input is copied, or images are taken together."""
AHEAD = 8
"""Offsets that kernels read, and do not use, behind those of a step."""
MOST_BYTES = 2**31
"""Offsets are kept in 32 bits."""
_ALL = -torch.inf, torch.inf
ACTIVATIONS = {"none": _ALL, "relu": (0.0, torch.inf), "relu6": (0.0, 6.0), **dict.fromkeys(CURVES, _ALL)}
"""The least and greatest output of those that a chain fuses, but for what a curve does."""


class UnplannableError(Exception):
    """The layers have numbers that a chain does not hold, or do not take such images; they say so themselves."""


def require(held: bool, why: str) -> None:
    if not held:
        raise UnplannableError(why)


@dataclass
class Plan:
    """What `ops.conv_chain` takes besides x."""

    steps: Tensor
    values: Tensor
    indices: Tensor
    floats: Tensor
    arena_bytes: int
    late_steps: int
    lanes: int
    out_size: tuple[int, int, int]
    out_dtype: torch.dtype
    arena: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))


class Pool:
    """A tensor that steps index, while it grows."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.parts, self.size = dtype, list[Tensor](), 0

    def keep(self, tensor: Tensor) -> int:
        """Where the tensor begins."""
        start = self.size
        self.parts.append(tensor.detach().to(self.dtype).reshape(-1))
        self.size += tensor.numel()
        return start

    def tensor(self) -> Tensor:
        return torch.cat([torch.empty(0, dtype=self.dtype), *self.parts])


class Builder(ABC):
    """Makes a plan; what the layers of an element type mean is left to a class for each."""

    def __init__(self, body: fx.GraphModule, size: tuple[int, int, int], dtype: torch.dtype, values: torch.dtype):
        self.body, self.size, self.dtype = body, size, dtype
        self.values, self.indices, self.floats = Pool(values), Pool(torch.int32), Pool(torch.float32)
        self.entries: list[Entry] = []
        self.early: list[Entry] = []
        self.part = self.early  # where steps are put now
        self.pointwise = False  # whether no float layer reads a pixel's neighbours
        self.copies: dict[tuple[Plane, Grid, Pair], Plane] = {}
        self.out: tuple[tuple[int, int, int], torch.dtype] | None = None

    @abstractmethod
    def walk(self) -> None:
        """Turn the body's layers into `entries`, and set `out`."""

    def module(self, node: fx.Node) -> nn.Module:
        return self.body.get_submodule(str(node.target))

    def windowed(self, step: Step, x: Plane, planes: int, window: Window, zero_point: int, spread: int = 1) -> Entry:
        """A step over places from x to a new activation, for each of whose pixels spread x spread ones are made."""
        oh, ow = window.output(x.h, x.w)
        require(min(oh, ow) > 0, "a window does not fit its input")
        y = Plane(planes, spread * oh, spread * ow, zero_point)
        entry = Entry(step, x, y, window=window, spread=spread)
        step.planes, step.spread = planes * spread**2, spread
        self.entries.append(entry)
        return entry

    def concatenate(self, parts: list[Plane]) -> Plane:
        """Activations behind each other; one that is a part of another concatenation already is copied."""
        h, w, zero_point = parts[0].h, parts[0].w, parts[0].zero_point
        same = all((part.h, part.w, part.zero_point) == (h, w, zero_point) for part in parts)
        require(same, "parts of a concatenation have other sizes or ranges")
        whole, before = Plane(sum(part.planes for part in parts), h, w, zero_point), 0
        for part in parts:
            if not whole.take(part, before):
                copy = Plane(part.planes, h, w, zero_point)
                whole.take(copy, before)
                self.entries.append(Entry(Step(Kind.RELANE, planes=part.planes, h=h, w=w), part, copy))
            before += part.planes
        return whole

    # The layout.

    def _lay_out(self, lanes: int) -> int:
        """Give all activations grids and halos, and put the steps in two parts: what comes late runs over the places of
        several images. Returns the first late step.

        Late is what follows the first step whose weights would not stay in L2 beside its activations, or whose small
        images leave lanes empty one by one.
        """
        walked = self.entries
        self.pointwise = self.values.dtype == torch.float32 and all(entry.window == Window() for entry in walked)
        first = self._first_late(lanes)
        late: list[Entry] = []
        loads: list[Entry] = []
        for i, entry in enumerate(walked):
            self.part, images = (self.early, 1) if i < first else (late, lanes)
            asked = entry.y
            if entry.step.kind in (Kind.CONV, Kind.MAX_POOL):
                self._lay_out_windowed(entry, images)
            elif entry.x is None:  # loading: whoever reads it chooses the grid
                loads.append(entry)
                continue
            elif entry.step.kind == Kind.RELANE:
                self._lay_out_part(entry, images)
                continue
            elif entry.x.grid is None:
                entry.x.grid = self._whole_grid(entry.x, images)
            self.part.append(entry)
            if entry.y is not None and asked is not None and entry.y is not asked:
                self._relane(entry.y, asked)
        for entry in loads:  # as many images at a time as the grid holds
            assert entry.y is not None and entry.y.grid is not None
            (self.early if entry.y.grid.images == 1 else late).insert(0, entry)
        self.entries = self.early + late
        return len(self.early)

    def _first_late(self, lanes: int) -> int:
        """The first step that is worth taking several images together for, where no concatenation is half made."""
        made: dict[Area, list[int]] = {}
        for i, entry in enumerate(self.entries):
            if entry.y is not None:
                made.setdefault(entry.y.area, []).append(i)
        for i, entry in enumerate(self.entries):
            if self._gains(entry, lanes) and not any(steps[0] < i <= steps[-1] for steps in made.values()):
                return i
        return len(self.entries)

    def _best_grid(self, entry: Entry, images: int) -> Grid:
        x, y = entry.x, entry.y
        assert x is not None and y is not None
        outputs = y.h // entry.spread, y.w // entry.spread
        return best_grid(images, outputs, (x.h, x.w), entry.window.stride, self.pointwise)

    def _lay_out_part(self, entry: Entry, images: int) -> None:
        """Copy what is a part of several concatenations."""
        x, y = entry.x, entry.y
        assert x is not None and y is not None
        taken = x.grid if x.grid is not None and x.grid.images == images else None
        grid = y.grid or taken or self._whole_grid(y, images)
        y.grid = grid
        if x.grid is None:
            x.grid = grid
        self._relane(x, y)

    def _gains(self, entry: Entry, lanes: int) -> bool:
        """Whether a step is worth taking several images together for."""
        if entry.step.kind != Kind.CONV:
            return False
        if entry.weight_bytes > LATE_BYTES:
            return True
        apart, together = (self._best_grid(entry, images).vectors() for images in (1, lanes))
        return lanes * apart > WASTE * together

    def _lay_out_windowed(self, entry: Entry, images: int) -> None:
        x, y, window = entry.x, entry.y, entry.window
        assert x is not None and y is not None
        grid = self._best_grid(entry, images)
        if x.grid is not None and x.grid.images == images:
            inherited = x.grid.output(window.stride, y.h // entry.spread, y.w // entry.spread)
            if inherited is not None and inherited.vectors() <= WASTE * grid.vectors():
                grid = inherited
        made = grid.scaled(entry.spread, entry.spread)
        if y.grid not in (None, made):  # it is a part of what has another grid already
            entry.y = y = Plane(y.planes, y.h, y.w, y.zero_point)
        y.grid = made
        needed = grid.scaled(*window.stride)
        if x.grid not in (None, needed) and window == Window(stride=window.stride):
            entry.window = Window()  # only the pixels that are read are copied
            size = window.output(x.h, x.w)
            entry.x = self._copy(x, grid, size, window.stride)
        else:
            entry.x = self._with_grid(x, needed)
        x = entry.x
        if entry.residual is not None:
            entry.residual = self._with_grid(entry.residual, grid)
        if window.reach() != (0, 0) or window.padding != (0, 0):
            x.reach(window)
            if x.padding != entry.padding:
                x.fill(entry.padding)
                self.part.append(Entry(Step(Kind.HALO, planes=x.planes, padding=entry.padding), x, x))

    @staticmethod
    def _whole_grid(plane: Plane, images: int) -> Grid:
        """That of an activation that no window reads."""
        return best_grid(images, (plane.h, plane.w), (1, 1), (1, 1))

    def _with_grid(self, plane: Plane, grid: Grid) -> Plane:
        """The activation as it lies with a grid: itself, or a copy."""
        if plane.grid is None:
            plane.grid = grid
        if plane.grid == grid:
            return plane
        return self._copy(plane, grid, (plane.h, plane.w), (1, 1))

    def _copy(self, plane: Plane, grid: Grid, size: Pair, stride: Pair) -> Plane:
        """Every stride-th pixel, with another grid."""
        key = plane, grid, stride
        if key not in self.copies:
            copy = Plane(plane.planes, *size, plane.zero_point, grid)
            self.copies[key] = copy
            self._relane(plane, copy, stride)
        return self.copies[key]

    def _relane(self, x: Plane, y: Plane, stride: Pair = (1, 1)) -> None:
        """Copy every stride-th pixel to where it lies in another grid."""
        assert x.grid is not None and y.grid is not None
        step = Step(Kind.RELANE, planes=x.planes, h=y.h, w=y.w, stride_h=stride[0], stride_w=stride[1])
        # What late steps read of early ones is copied as soon as it is there, image by image.
        (self.early if x.grid.images < y.grid.images else self.part).append(Entry(step, x, y))

    def _place(self, first_late: int) -> int:
        """Give each activation its place; returns the bytes of the arena.

        What several images hold together keeps its place while each of them goes through the early steps.
        """
        used: dict[Area, None] = {}
        for i, entry in enumerate(self.entries):
            for area in (plane.area for plane in entry.planes()):
                area.steps.append(i)
                area.planar = area.planar or area.pitch() == 1  # rows of one vector need no gaps
                used[area] = None
        for area in used:
            if min(area.steps) < first_late <= max(area.steps):
                area.steps.append(0)
        return fit(list(used))

    def _finish(self, entry: Entry, halos: dict[Plane, tuple[int, int, int]]) -> None:
        """Fill in what depends on the places."""
        step, x, y, residual = entry.step, entry.x, entry.y, entry.residual
        if x is not None:
            assert x.grid is not None
            step.x, step.x_plane, step.x_pitch = x.first(), x.plane_bytes(), x.row_bytes()
            step.x_images, step.x_grid_h, step.x_grid_w, step.x_block_h, step.x_block_w = x.grid
        if y is not None:
            assert y.grid is not None
            step.y, step.y_plane, step.y_pitch = y.first(), y.plane_bytes(), y.row_bytes()
            step.y_images, step.y_grid_h, step.y_grid_w, step.y_block_h, step.y_block_w = y.grid
            step.rows, step.columns = y.grid.block_h // entry.spread, y.grid.block_w // entry.spread
            step.y_pitch *= entry.spread
        if residual is not None:
            step.residual, step.residual_plane = residual.first(), residual.plane_bytes()
            step.residual_pitch = residual.row_bytes()
        if step.kind == Kind.HALO:
            assert y is not None
            if y not in halos:
                vectors, lanes = y.around()
                halos[y] = self.indices.keep(vectors), self.indices.keep(lanes), len(vectors)
            step.offsets, step.lanes, step.blocks = halos[y]
        if step.kind == Kind.TRANSFORM:
            assert x is not None
            above, left = entry.window.taps()[0]
            step.x += above * x.row_bytes() + left * LINE
        if step.kind in (Kind.CONV, Kind.MAX_POOL, Kind.WINOGRAD):
            assert x is not None and y is not None
            step.x_down, step.x_across = entry.window.stride[0] * x.row_bytes(), entry.window.stride[1] * LINE
            taps = torch.tensor([r * x.row_bytes() + c * LINE for r, c in entry.window.taps()])
            offsets = taps[entry.columns // x.planes] + entry.columns % x.planes * x.plane_bytes()
            step.offsets = self.indices.keep(F.pad(offsets, (0, AHEAD)))
            if step.quads >= 0:
                step.quad_offsets = self.indices.keep(taps[:: step.kernel_w])
            if step.kind == Kind.WINOGRAD:
                step.columns = x.area.pitch()  # strips
                if entry.window.stride[0] == 1:
                    step.rows, step.columns = 1, step.rows * step.columns  # rows without gaps
            elif (
                entry.window.stride == (1, 1)
                and entry.spread == 1
                and all(p.area.planar and p.area.pitch() == step.columns for p in (x, y, residual or y))
            ):
                step.rows, step.columns = 1, step.rows * step.columns

    def build(self, lanes: int) -> Plan:
        self.walk()
        first_late = self._lay_out(lanes)
        arena_bytes = self._place(first_late)
        require(arena_bytes < MOST_BYTES, "the activations take more than 2 GB")
        halos: dict[Plane, tuple[int, int, int]] = {}
        for entry in self.entries:
            self._finish(entry, halos)
        assert self.out is not None
        steps = torch.tensor([entry.step.ints() for entry in self.entries], dtype=torch.int64)
        pools = self.values.tensor(), self.indices.tensor(), self.floats.tensor()
        return Plan(steps, *pools, arena_bytes, first_late, lanes, *self.out)
