"""Plans of int8 chains: from the layers of a graph and the size of an image to the steps of `ops.conv_chain`.

Layers become steps over activations; then activations of one resolution get one pitch, so that a convolution runs over
places whatever its window; and each activation gets a part of the arena for as long as it is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from torchaccel.nn._chain_layout import LINE, Entry, Plane, fit
from torchaccel.nn._int8_conv import Int8Conv
from torchaccel.nn.input_range import InputRange
from torchaccel.nn.int8_conv2d import Int8Conv2d
from torchaccel.nn.int8_pool import Int8AdaptiveAvgPool2d, Int8MaxPool2d
from torchaccel.nn.quantize import QuantizeInt8
from torchaccel.nn.sparse_int8_conv2d import SparseInt8Conv2d
from torchaccel.ops import blocks
from torchaccel.ops.conv_chain import LANES, Kind, Step

TILES = {1: 8, 4: 10, 0: 10}
"""Vectors of a tile by the rows of a block: what registers hold with AVX-512, once or twice."""
LATE_BYTES = 256 << 10
"""Weights of one step, a quarter of a usual L2."""
ACTIVATIONS = {"none": (-torch.inf, torch.inf), "relu": (0.0, torch.inf), "relu6": (0.0, 6.0)}
"""The least and greatest output of those that a chain fuses."""
STEPS = 1 << 15
"""Bounds of activations are kept in 16 bits."""
MOST_STEPS = 1 << 30
"""How far an output before saturation may lie from its zero point, so that it fits an int32."""


class UnplannableError(Exception):
    """The layers have numbers that a chain does not hold, or do not take such images; they say so themselves."""


def _require(held: bool, why: str) -> None:
    if not held:
        raise UnplannableError(why)


def byte_zero_point(range: InputRange) -> int:
    """The zero point as a chain keeps activations: in uint8, int8 with its sign bit flipped."""
    return range.zero_point + (128 if range.dtype == torch.int8 else 0)


def _output_range(module: Int8Conv | Int8AdaptiveAvgPool2d) -> InputRange:
    assert module.output_scale is not None and module.output_zero_point is not None
    return InputRange(float(module.output_scale), int(module.output_zero_point), module.output_dtype)


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


def _padded_weight(module: Int8Conv2d) -> Tensor:
    """[ceil(O / 4), kh * kw * ceil(C / 4), 4, 4]: blocks of 4 outputs x 4 inputs."""
    o, c, kh, kw = module.weight.shape
    weight = torch.nn.functional.pad(module.weight, (0, 0, 0, 0, 0, -c % 4, 0, -o % 4))
    tiles = weight.view(-(-o // 4), 4, -(-c // 4), 4, kh, kw)
    return tiles.permute(0, 4, 5, 2, 1, 3).reshape(tiles.shape[0], -1, 4, 4)


class _Builder:
    def __init__(self, body: fx.GraphModule, size: tuple[int, int, int], dtype: torch.dtype) -> None:
        self.body, self.size, self.dtype = body, size, dtype
        self.planes: list[Plane] = []
        self.linked: list[tuple[Plane, Plane]] = []  # of one pitch
        self.entries: list[Entry] = []
        self.values: list[Tensor] = []
        self.indices: list[Tensor] = []
        self.floats: list[Tensor] = []
        self.value_of: dict[fx.Node, Plane] = {}
        self.outside: dict[InputRange, Plane] = {}
        self.out: tuple[tuple[int, int, int], torch.dtype] | None = None

    # What steps index.

    def _store(self, pool: list[Tensor], tensor: Tensor, dtype: torch.dtype) -> int:
        start = sum(t.numel() for t in pool)
        pool.append(tensor.detach().to(dtype).reshape(-1))
        return start

    def _plane(self, *args, **kwargs) -> Plane:
        self.planes.append(Plane(*args, **kwargs))
        return self.planes[-1]

    # Steps.

    def load(self, range: InputRange) -> Plane:
        """The tensor outside, as bytes; a second reader with the same range shares it."""
        _require(self.dtype in (torch.float32, range.dtype), "x is int8 of another dtype")
        if range not in self.outside:
            c, h, w = self.size
            plane = self._plane(-(-c // 4), h, w, byte_zero_point(range))
            self.outside[range] = plane
            inverse = torch.reciprocal(torch.tensor([range.scale], dtype=torch.float32))
            floats = torch.cat([inverse, torch.tensor([-float(plane.zero_point), 255.0 - plane.zero_point])])
            flip = self.dtype == torch.int8
            step = Step(
                Kind.LOAD, planes=plane.planes, h=h, w=w, channels=c, flip=flip, zero_point=plane.zero_point,
                floats=self._store(self.floats, floats, torch.float32),
            )  # fmt: skip
            self.entries.append(Entry(step, y=plane))
        return self.outside[range]

    def _windowed(
        self,
        x: Plane,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        pad: tuple[int, int],
        dilation: tuple[int, int],
        zero_point: int,
        copy: bool,
    ) -> tuple[Plane, list[tuple[int, int, int]], tuple[int, int]]:
        """x as a window reads it: in phases where there is a stride; the taps as (phase, rows, columns); (OH, OW)."""
        reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        oh, ow = ((s + 2 * p - r - 1) // st + 1 for s, p, r, st in zip((x.h, x.w), pad, reach, stride, strict=True))
        _require(min(oh, ow) > 0, "a window does not fit its input")
        if not copy and stride == (1, 1):
            x.reach(pad[0], pad[0], pad[1], pad[1])
            taps = [
                (0, ky * dilation[0] - pad[0], kx * dilation[1] - pad[1])
                for ky in range(kernel[0])
                for kx in range(kernel[1])
            ]
            return x, taps, (oh, ow)
        phases = tuple(min(st, r % st + 1 if k == 1 else st) for st, r, k in zip(stride, reach, kernel, strict=True))
        y = self._plane(x.planes, x.h, x.w, zero_point, stride, pad, phases)
        # What the last output reads, beyond the pixels there are.
        last = [o - 1 + r // st for o, r, st in zip((oh, ow), reach, stride, strict=True)]
        there = [-(-(s + p) // st) for s, p, st in zip((x.h, x.w), pad, stride, strict=True)]
        y.reach(0, max(last[0] + 1 - there[0], 0), 0, max(last[1] + 1 - there[1], 0))
        step = Step(
            Kind.SPLIT, planes=x.planes, h=x.h, w=x.w, stride_h=stride[0], stride_w=stride[1], pad_h=pad[0],
            pad_w=pad[1], phases_h=phases[0], phases_w=phases[1], zero_point=zero_point,
        )  # fmt: skip
        loaded = next((e for e in self.entries if e.y is x and e.step.kind == Kind.LOAD), None)
        if loaded is not None and zero_point == x.zero_point and self._read_once():
            self.planes.remove(x)
            for name in ("stride_h", "stride_w", "pad_h", "pad_w", "phases_h", "phases_w"):
                setattr(loaded.step, name, getattr(step, name))
            loaded.y = y
        else:
            self.entries.append(Entry(step, x, y))
        taps = []
        for ky in range(kernel[0]):
            for kx in range(kernel[1]):
                down, across = ky * dilation[0], kx * dilation[1]
                phase = down % stride[0] * phases[1] + across % stride[1]
                taps.append((phase, down // stride[0], across // stride[1]))
        return y, taps, (oh, ow)

    def _read_once(self) -> bool:
        """Whether the tensor outside has a single reader in the body, which takes it once."""
        value = next(n for n in self.body.graph.nodes if n.op == "placeholder")
        readers = list(value.users)
        if len(readers) == 1 and isinstance(self._module(readers[0]), QuantizeInt8):
            value, readers = readers[0], list(readers[0].users)
        return len(readers) == 1 and readers[0].args.count(value) == 1

    def conv(self, m: Int8Conv, x: Plane, residual: Plane | None) -> Plane:
        window = m.kernel_size, m.stride, m.padding, m.dilation
        x, taps, (oh, ow) = self._windowed(x, *window, x.zero_point, copy=False)
        given, asked = m.input_range(), _output_range(m)
        assert given is not None and m.output_scale is not None and m.colsum is not None
        y = self._plane(-(-m.out_channels // 4), oh, ow, byte_zero_point(asked))
        self.linked.append((x, y))
        if residual is not None:
            self.linked.append((residual, y))

        inverse = torch.reciprocal(m.output_scale.float())
        residual_scale = torch.ones(1) if m.residual_scale is None else m.residual_scale.float()
        floats = torch.zeros(2, 4 * y.planes)
        floats[0, : m.out_channels] = m.input_scale.float() * m.scale
        # Adding -0 changes nothing, not even a negative zero.
        floats[1, : m.out_channels] = -0.0 if m.bias is None else m.bias
        low, high = (torch.tensor(bound) * inverse for bound in ACTIVATIONS[m.activation])
        bounds = torch.cat([low.round().clamp(min=-STEPS), high.round().clamp(max=STEPS - 1)])
        head = torch.cat([inverse, bounds, residual_scale])
        depth = m.in_channels * m.kernel_size[0] * m.kernel_size[1]
        most = 255.0 * 127.0 * depth * floats[0].abs() + floats[1].abs() + 255.0 * residual_scale
        fits = bool((most * inverse).max() < MOST_STEPS)
        _require(fits, "a convolution's sums may lie too far outside of its output's range")
        starts = torch.zeros(4 * y.planes, dtype=torch.int32)
        starts[: m.out_channels] = -byte_zero_point(given) * m.colsum
        step = Step(
            Kind.CONV, planes=y.planes,
            floats=self._store(self.floats, torch.cat([head, floats.flatten()]), torch.float32),
            starts=self._store(self.indices, starts, torch.int32),
            zero_point=y.zero_point, residual_zero_point=0 if residual is None else residual.zero_point,
        )  # fmt: skip
        block = blocks.block_of(m.pattern) if isinstance(m, SparseInt8Conv2d) else None
        if isinstance(m, SparseInt8Conv2d) and block in ((1, 4), (4, 4)):
            columns, bounds, step.block_rows = m.columns, m.row_offsets, block[0]
            bounds = torch.cat([bounds, bounds[-1:].expand(4 * y.planes // block[0] + 1 - bounds.numel())])
            step.row_offsets = self._store(self.indices, bounds, torch.int32)
            step.values = self._store(self.values, m.values, torch.int8)
        else:
            if isinstance(m, SparseInt8Conv2d):
                dense = Int8Conv2d(m.in_channels, m.out_channels, m.kernel_size)
                dense.weight = blocks.from_blocks(m.values, m.columns, m.row_offsets, m.in_channels, m.kernel_size)
            else:
                assert isinstance(m, Int8Conv2d)
                dense = m
            packed = _padded_weight(dense)
            step.values, step.blocks = self._store(self.values, packed, torch.int8), packed.shape[1]
            columns = torch.arange(packed.shape[1])
        step.tile = TILES[step.block_rows]
        self.entries.append(Entry(step, x, y, residual, columns.long(), taps))
        return y

    def max_pool(self, m: Int8MaxPool2d, x: Plane) -> Plane:
        window = m.kernel_size, m.stride, m.padding, m.dilation
        _require(all(2 * p <= k for p, k in zip(m.padding, m.kernel_size, strict=True)), "too much padding")
        copy = m.stride != (1, 1) or m.padding != (0, 0)
        source, taps, (oh, ow) = self._windowed(x, *window, 0 if copy else x.zero_point, copy)
        y = self._plane(x.planes, oh, ow, x.zero_point)
        self.linked.append((source, y))
        step = Step(Kind.MAX_POOL, planes=x.planes, blocks=len(taps), zero_point=y.zero_point)
        self.entries.append(Entry(step, source, y, None, torch.arange(len(taps)) * x.planes, taps))
        return y

    def average(self, m: Int8AdaptiveAvgPool2d, x: Plane, channels: int) -> None:
        given = m.input_range()
        assert given is not None
        count = torch.tensor(float(x.h * x.w))
        factor = torch.tensor(given.scale, dtype=torch.float32) * torch.reciprocal(count)
        inverse, zero_point, flip = torch.ones(()), 0, False
        if m.output_scale is not None:
            asked = _output_range(m)
            inverse, flip = torch.reciprocal(m.output_scale.float())[0], asked.dtype == torch.int8
            zero_point = byte_zero_point(asked)
        bounds = [torch.tensor(float(-zero_point)), torch.tensor(255.0 - zero_point)]
        step = Step(
            Kind.AVERAGE, planes=x.planes, h=x.h, w=x.w, channels=channels, flip=flip, zero_point=zero_point,
            residual_zero_point=x.zero_point,
            floats=self._store(self.floats, torch.stack([factor, inverse, *bounds]), torch.float32),
        )  # fmt: skip
        self.entries.append(Entry(step, x))
        self.out = (channels, 1, 1), m.output_dtype

    def store(self, x: Plane, channels: int, dtype: torch.dtype) -> None:
        step = Step(Kind.STORE, planes=x.planes, h=x.h, w=x.w, channels=channels, flip=dtype == torch.int8)
        self.entries.append(Entry(step, x))
        self.out = (channels, x.h, x.w), dtype

    # The body.

    def _module(self, node: fx.Node) -> nn.Module:
        return self.body.get_submodule(str(node.target))

    def walk(self) -> None:
        channels: dict[fx.Node, tuple[int, torch.dtype]] = {}
        outside: fx.Node | None = None
        for node in self.body.graph.nodes:
            if node.op == "placeholder":
                outside = node
            elif node.op == "output":
                (made,) = node.args
                if self.out is None:
                    self.store(self.value_of[made], *channels[made])
            else:
                m = self._module(node)
                source = node.args[0]
                if isinstance(m, QuantizeInt8):
                    self.value_of[node] = self.load(m.input_range)
                    channels[node] = self.size[0], m.input_range.dtype
                    continue
                if source is outside:
                    given = m.input_range()  # type: ignore[operator]
                    x, (c, dtype) = self.load(given), (self.size[0], given.dtype)
                else:
                    x, (c, dtype) = self.value_of[source], channels[source]
                if not isinstance(m, Int8MaxPool2d):
                    given = m.input_range()  # type: ignore[operator]
                    same = dtype == given.dtype and x.zero_point == byte_zero_point(given)
                    _require(same, "a layer has another range than what it reads")
                if isinstance(m, Int8AdaptiveAvgPool2d):
                    self.average(m, x, c)
                elif isinstance(m, Int8MaxPool2d):
                    self.value_of[node], channels[node] = self.max_pool(m, x), (c, dtype)
                else:
                    assert isinstance(m, Int8Conv)
                    _require(m.in_channels == c, "a convolution reads other channels")
                    residual = self.value_of[node.args[1]] if len(node.args) > 1 else None
                    self.value_of[node] = y = self.conv(m, x, residual)
                    channels[node] = m.out_channels, m.output_dtype
                    if residual is not None:
                        self._check_residual(m, y, residual, *channels[node.args[1]])

    def _check_residual(self, m: Int8Conv, y: Plane, residual: Plane, channels: int, dtype: torch.dtype) -> None:
        _require((residual.h, residual.w, channels) == (y.h, y.w, m.out_channels), "a residual has another size")
        assert m.residual_scale is not None and m.residual_zero_point is not None
        expected = InputRange(float(m.residual_scale), int(m.residual_zero_point), dtype)
        _require(byte_zero_point(expected) == residual.zero_point, "a residual has another range")

    # The layout.

    def _set_pitches(self) -> None:
        group = {plane: plane for plane in self.planes}

        def root(plane: Plane) -> Plane:
            while group[plane] is not plane:
                plane = group[plane]
            return plane

        for a, b in self.linked:
            group[root(a)] = root(b)
        widest: dict[Plane, int] = {}
        for plane in self.planes:
            widest[root(plane)] = max(widest.get(root(plane), 0), plane.least_pitch())
        for plane in self.planes:
            plane.pitch = widest[root(plane)]

    def _divide(self, lanes: int) -> int:
        """Put the steps in two parts, the late ones over the places of several images; returns the first late step.

        Late is what follows the first step whose weights would not stay in L2 beside its activations.
        """
        heavy = (i for i, entry in enumerate(self.entries) if entry.weight_bytes() > LATE_BYTES)
        first = next(heavy, len(self.entries))
        late = [entry for entry in self.entries[first:] if entry.over_places()]
        together = {plane for entry in late for plane in entry.planes()}
        alone = {plane for entry in self.entries[:first] if entry.over_places() for plane in entry.planes()}
        copies: dict[Plane, Plane] = {}
        for plane in [plane for plane in self.planes if plane in together & alone]:
            copy = self._plane(plane.planes, plane.h, plane.w, plane.zero_point, halo=list(plane.halo))
            self.linked.append((copy, plane))
            copies[plane] = copy
        for entry in late:
            entry.x, entry.residual = (copies.get(p, p) if p is not None else None for p in (entry.x, entry.residual))
        together = {copies.get(plane, plane) for plane in together}
        for plane in together:
            plane.lanes = lanes
        for plane, copy in copies.items():
            step = Step(Kind.SPLIT, planes=plane.planes, h=plane.h, w=plane.w, zero_point=plane.zero_point)
            self.entries.append(Entry(step, plane, copy))
        early = [
            entry
            for i, entry in enumerate(self.entries)
            if i < first or (not entry.over_places() and entry.x not in together)
        ]
        self.entries = early + [entry for entry in self.entries if entry not in early]
        return len(early)

    def _place(self, first_late: int) -> int:
        """Give each activation its place; returns the bytes of the arena.

        What several images hold together keeps its place while each of them goes through the early steps.
        """
        for i, entry in enumerate(self.entries):
            for plane in entry.planes():
                plane.steps.append(i)
        used = [plane for plane in self.planes if plane.steps]
        end = fit([plane for plane in used if max(plane.steps) < first_late], 0)
        return fit([plane for plane in used if max(plane.steps) >= first_late], end)

    def _masks(self, y: Plane, seen: dict[tuple[int, int, int, int], int]) -> int:
        key = y.h, y.w, y.pitch, y.lanes
        if key not in seen:
            places = torch.arange(LANES * y.vectors()) // y.lanes
            there = (places % y.pitch < y.w) & (places // y.pitch < y.h)
            bits = (there.view(-1, LANES).long() << torch.arange(LANES)).sum(1)
            seen[key] = self._store(self.indices, bits, torch.int32)
        return seen[key]

    def finish(self, lanes: int) -> Plan:
        first_late = self._divide(lanes)
        self._set_pitches()
        arena_bytes = self._place(first_late)
        masks: dict[tuple[int, int, int, int], int] = {}
        for entry in self.entries:
            step, x, y, residual = entry.step, entry.x, entry.y, entry.residual
            if x is not None:
                step.x, step.x_plane, step.x_pitch = x.at, x.plane_bytes(), 4 * x.pitch * x.lanes
                step.x_lanes = x.lanes
                if not x.is_copy():
                    step.x += x.lead()
            if y is not None:
                step.y, step.y_plane, step.y_pitch = y.at, y.plane_bytes(), 4 * y.pitch * y.lanes
                step.y_lanes = y.lanes
                if not entry.over_places():
                    step.phase, step.y_lead = y.phase_bytes(), 0 if y.is_copy() else y.lead()
                else:
                    step.y += y.lead()
                    step.vectors, step.masks = y.vectors(), self._masks(y, masks)
                    if any(y.halo):
                        step.y_lead = y.lead()
                        step.y_tail = y.plane_bytes() - y.lead() - LINE * y.vectors()
            if residual is not None:
                step.residual, step.residual_plane = residual.at + residual.lead(), residual.plane_bytes()
            if x is not None and entry.over_places():
                steps = [p * x.phase_bytes() + 4 * x.lanes * (rows * x.pitch + i) for p, rows, i in entry.taps]
                offsets = torch.tensor(steps)[entry.columns // x.planes] + entry.columns % x.planes * x.plane_bytes()
                step.offsets = self._store(self.indices, offsets, torch.int32)
        assert self.out is not None
        empty = [torch.zeros(0)]
        return Plan(
            torch.tensor([entry.step.ints() for entry in self.entries], dtype=torch.int64),
            torch.cat(self.values or empty).to(torch.int8),
            torch.cat(self.indices or empty).to(torch.int32),
            torch.cat(self.floats or empty).to(torch.float32),
            arena_bytes,
            first_late,
            lanes,
            *self.out,
        )


def build(body: fx.GraphModule, size: tuple[int, int, int], dtype: torch.dtype, lanes: int) -> Plan:
    """The plan of a chain's layers for images [C, H, W], which come as floats or as the first layer's int8.

    Args:
        lanes: how many images a thread has at a time.

    Raises:
        UnplannableError: numbers that a chain does not hold, or images that the layers refuse.
    """
    builder = _Builder(body, size, dtype)
    builder.walk()
    return builder.finish(lanes)
