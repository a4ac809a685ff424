"""Plans of int8 chains: what their layers mean as steps."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, fx

from torchaccel.nn._chain_builder import ACTIVATIONS, Builder, require
from torchaccel.nn._chain_layout import Entry, Plane, Window
from torchaccel.nn._chain_weights import Blocks, blocks_of_4, grouped_blocks, quads
from torchaccel.nn._int8_conv import Int8Conv
from torchaccel.nn.concatenation import parts_of
from torchaccel.nn.input_range import InputRange
from torchaccel.nn.int8_add import Int8Add
from torchaccel.nn.int8_conv2d import Int8Conv2d
from torchaccel.nn.int8_conv_transpose2d import Int8ConvTranspose2d
from torchaccel.nn.int8_pool import Int8AdaptiveAvgPool2d, Int8AvgPool2d, Int8MaxPool2d
from torchaccel.nn.quantize import QuantizeInt8
from torchaccel.nn.sparse_int8_conv2d import SparseInt8Conv2d
from torchaccel.nn.upsample import Upsample
from torchaccel.ops import blocks
from torchaccel.ops._chain_step import CURVES, Kind, Step

TILES = {1: 8, 4: 15, 0: 15}
"""Vectors of a tile by the rows of a block: what registers hold with AVX-512, once or three times."""
STEPS = 1 << 15
"""Bounds of activations are kept in 16 bits."""
MOST_STEPS = 1 << 30
"""How far an output before saturation may lie from its zero point, so that it fits an int32."""


def byte_zero_point(range: InputRange) -> int:
    """The zero point as a chain keeps activations: in uint8, int8 with its sign bit flipped."""
    return range.zero_point + (128 if range.dtype == torch.int8 else 0)


def _word(byte: int) -> int:
    """Four of a byte, as an int32."""
    return int.from_bytes(bytes([byte] * 4), "little", signed=True)


def _output_range(module: Int8Conv | Int8AdaptiveAvgPool2d | Int8Add | Int8AvgPool2d) -> InputRange:
    assert module.output_scale is not None and module.output_zero_point is not None
    return InputRange(float(module.output_scale), int(module.output_zero_point), module.output_dtype)


def _filled(values: Tensor, m: Int8Conv, planes: int) -> Tensor:
    """What a convolution has for each of its sums [rows, ...], with zeros where channels do not fill the planes."""
    squares = values.unflatten(0, (-1, m.out_channels))
    rows = 4 * planes // squares.shape[0]
    filled = values.new_zeros(squares.shape[0], rows, *values.shape[1:])
    filled[:, : m.out_channels] = squares
    return filled.flatten(0, 1)


def _as_conv(m: Int8Add | Int8AvgPool2d, channels: int) -> Int8Conv2d:
    """A sum as a depthwise convolution of ones that takes a residual, or an average as one of its window."""
    given, asked = m.input_range(), _output_range(m)
    assert given is not None
    if isinstance(m, Int8Add):
        added = m.residual_range
        conv = Int8Conv2d(channels, channels, 1, groups=channels, bias=False, activation=m.activation)
        conv.set_residual(added.scale, added.zero_point, added.dtype)
    else:
        conv = Int8Conv2d(channels, channels, m.kernel_size, m.stride, m.padding, groups=channels, bias=False)
        conv.scale = torch.reciprocal(torch.full_like(conv.scale, conv.kernel_size[0] * conv.kernel_size[1]))
    conv.weight.fill_(1)
    conv.set_input(given.scale, given.zero_point, given.dtype)
    conv.set_output(asked.scale, asked.zero_point, asked.dtype)
    conv.pack()
    return conv


class _Value(NamedTuple):
    """What a layer of a chain reads."""

    plane: Plane
    channels: int
    dtype: torch.dtype


class Int8Builder(Builder):
    def __init__(self, body: fx.GraphModule, size: tuple[int, int, int], dtype: torch.dtype) -> None:
        super().__init__(body, size, dtype, torch.int8)
        self.outside: dict[InputRange, Plane] = {}

    def load(self, range: InputRange) -> Plane:
        """The tensor outside, as bytes; a second reader with the same range shares it."""
        require(self.dtype in (torch.float32, range.dtype), "x is int8 of another dtype")
        if range not in self.outside:
            c, h, w = self.size
            plane = Plane(-(-c // 4), h, w, byte_zero_point(range))
            self.outside[range] = plane
            inverse = torch.reciprocal(torch.tensor([range.scale], dtype=torch.float32))
            floats = torch.cat([inverse, torch.tensor([-float(plane.zero_point), 255.0 - plane.zero_point])])
            step = Step(
                Kind.LOAD, planes=plane.planes, h=h, w=w, channels=c, flip=self.dtype == torch.int8,
                zero_point=plane.zero_point, floats=self.floats.keep(floats),
            )  # fmt: skip
            self.entries.append(Entry(step, y=plane))
        return self.outside[range]

    def conv(self, m: Int8Conv, x: Plane, residual: Plane | None = None) -> Plane:
        given, asked = m.input_range(), _output_range(m)
        assert given is not None
        step = Step(Kind.CONV, residual_zero_point=0 if residual is None else residual.zero_point)
        window, spread = Window(m.kernel_size, m.stride, m.padding, m.dilation), 1
        if isinstance(m, Int8ConvTranspose2d):
            window, spread = Window(), m.kernel_size[0]
        entry = self.windowed(step, x, -(-m.out_channels // 4), window, byte_zero_point(asked), spread)
        entry.residual, entry.padding = residual, _word(x.zero_point)
        step.zero_point, step.activation = byte_zero_point(asked), CURVES.get(m.activation, 0)
        step.floats, step.starts = self._requantization(m, step.planes), self._starts(m, step.planes)
        block = blocks.block_of(m.pattern) if isinstance(m, SparseInt8Conv2d) else None
        if isinstance(m, SparseInt8Conv2d) and block in ((1, 4), (4, 4)):
            bounds = m.row_offsets
            bounds = torch.cat([bounds, bounds[-1:].expand(4 * step.planes // block[0] + 1 - bounds.numel())])
            self._keep_blocks(entry, block[0], Blocks(m.values, m.columns.long(), bounds))
        elif isinstance(m, Int8Conv2d) and m.groups > 1:
            self._keep_blocks(entry, 4, grouped_blocks(m.weight, m.groups))
            self._keep_quads(entry, m)
        else:
            if isinstance(m, SparseInt8Conv2d):
                size = m.in_channels, m.kernel_size
                weight = blocks.from_blocks(m.values, m.columns, m.row_offsets, *size)
            else:
                assert isinstance(m, Int8Conv2d | Int8ConvTranspose2d)
                weight = m.weight
            packed = blocks_of_4(_filled(weight, m, step.planes))
            step.values, step.blocks = self.values.keep(packed), packed.shape[1]
            entry.columns, entry.weight_bytes = torch.arange(packed.shape[1]), packed.numel()
        step.tile = TILES[step.block_rows]
        assert entry.y is not None
        return entry.y

    def _keep_blocks(self, entry: Entry, rows: int, kept: Blocks) -> None:
        step = entry.step
        step.block_rows, step.row_offsets = rows, self.indices.keep(kept.bounds)
        step.values, entry.columns = self.values.keep(kept.values), kept.columns
        entry.weight_bytes = kept.values.numel() + 4 * kept.columns.numel()

    def _keep_quads(self, entry: Entry, m: Int8Conv2d) -> None:
        """A second form of the weights, for depthwise layers whose neighbouring outputs are neighbouring vectors."""
        depthwise = m.groups == m.in_channels == m.out_channels
        neighbouring = m.stride[1] == 1 and m.dilation[1] == 1 and m.kernel_size[1] > 1
        if not depthwise or not neighbouring or entry.residual is not None or (of := quads(m.weight)) is None:
            return
        entry.step.quads, (entry.step.kernel_h, entry.step.kernel_w) = self.values.keep(of), m.kernel_size

    def _requantization(self, m: Int8Conv, planes: int) -> int:
        assert m.output_scale is not None
        inverse = torch.reciprocal(m.output_scale.float())
        residual_scale = torch.ones(1) if m.residual_scale is None else m.residual_scale.float()
        # Adding -0 changes nothing, not even a negative zero.
        bias = torch.full_like(m.scale, -0.0) if m.bias is None else m.bias
        floats = torch.stack([_filled(m.input_scale.float() * m.scale, m, planes), _filled(bias, m, planes)])
        low, high = (torch.tensor(bound) * inverse for bound in ACTIVATIONS[m.activation])
        bounds = torch.cat([low.round().clamp(min=-STEPS), high.round().clamp(max=STEPS - 1)])
        depth = m.in_channels // m.groups * m.kernel_size[0] * m.kernel_size[1]
        most = 255.0 * 127.0 * depth * floats[0].abs() + floats[1].abs() + 255.0 * residual_scale
        fits = bool((most * inverse).max() < MOST_STEPS)
        require(fits, "a convolution's sums may lie too far outside of its output's range")
        return self.floats.keep(torch.cat([inverse, bounds, residual_scale, floats.flatten()]))

    def _starts(self, m: Int8Conv, planes: int) -> int:
        given = m.input_range()
        assert given is not None and m.colsum is not None
        return self.indices.keep(_filled(-byte_zero_point(given) * m.colsum, m, planes))

    def upsample(self, m: Upsample, x: Plane) -> Plane:
        """A copy for each place of a square: products with one, on scales of one."""
        step = Step(Kind.CONV, zero_point=x.zero_point, tile=TILES[4])
        entry = self.windowed(step, x, x.planes, Window(), x.zero_point, m.factor)
        bounds, rows = torch.tensor([1.0, -STEPS, STEPS - 1, 1.0]), 4 * step.planes
        step.floats = self.floats.keep(torch.cat([bounds, torch.ones(rows), torch.full((rows,), -0.0)]))
        step.starts = self.indices.keep(torch.full((rows,), -x.zero_point))
        ones = torch.eye(4, dtype=torch.int8).expand(step.planes, 4, 4)
        columns = torch.arange(x.planes).repeat(m.factor**2)
        self._keep_blocks(entry, 4, Blocks(ones, columns, torch.arange(step.planes + 1)))
        assert entry.y is not None
        return entry.y

    def max_pool(self, m: Int8MaxPool2d, x: Plane) -> Plane:
        require(all(2 * p <= k for p, k in zip(m.padding, m.kernel_size, strict=True)), "too much padding")
        window = Window(m.kernel_size, m.stride, m.padding, m.dilation)
        entry = self.windowed(Step(Kind.MAX_POOL), x, x.planes, window, x.zero_point)
        entry.step.blocks = len(window.taps())
        entry.columns = torch.arange(entry.step.blocks) * x.planes
        assert entry.y is not None
        return entry.y

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
            residual_zero_point=x.zero_point, floats=self.floats.keep(torch.stack([factor, inverse, *bounds])),
        )  # fmt: skip
        self.entries.append(Entry(step, x))
        self.out = (channels, 1, 1), m.output_dtype

    def store(self, value: _Value) -> None:
        x, channels, dtype = value
        step = Step(Kind.STORE, planes=x.planes, h=x.h, w=x.w, channels=channels, flip=dtype == torch.int8)
        self.entries.append(Entry(step, x))
        self.out = (channels, x.h, x.w), dtype

    def walk(self) -> None:
        values: dict[fx.Node, _Value] = {}
        outside: fx.Node | None = None

        def read(source: fx.Node, given: InputRange) -> _Value:
            return _Value(self.load(given), self.size[0], given.dtype) if source is outside else values[source]

        for node in self.body.graph.nodes:
            if node.op == "placeholder":
                outside = node
                continue
            if node.op == "output":
                if self.out is None:
                    self.store(values[node.args[0]])
                continue
            if (parts := parts_of(node)) is not None:
                values[node] = self._concatenated([values[part] for part in parts])
                continue
            m, (source, *added) = self.module(node), node.args
            if isinstance(m, QuantizeInt8):
                values[node] = read(source, m.input_range)
                continue
            if isinstance(m, Int8MaxPool2d):
                values[node] = values[source]._replace(plane=self.max_pool(m, values[source].plane))
                continue
            if isinstance(m, Upsample):
                values[node] = values[source]._replace(plane=self.upsample(m, values[source].plane))
                continue
            assert isinstance(m, Int8AdaptiveAvgPool2d | Int8AvgPool2d | Int8Add | Int8Conv)
            given = m.input_range()
            assert given is not None
            x = read(source, given)
            same = x.dtype == given.dtype and x.plane.zero_point == byte_zero_point(given)
            require(same, "a layer has another range than what it reads")
            if isinstance(m, Int8AdaptiveAvgPool2d):
                self.average(m, x.plane, x.channels)
                continue
            if isinstance(m, Int8Add):
                residuals = [read(a, m.residual_range) for a in added]
            else:
                residuals = [values[a] for a in added]
            if not isinstance(m, Int8Conv):
                m = _as_conv(m, x.channels)
            require(m.in_channels == x.channels, "a convolution reads other channels")
            made = self.conv(m, x.plane, *(residual.plane for residual in residuals))
            values[node] = _Value(made, m.out_channels, m.output_dtype)
            for residual in residuals:
                self._check_residual(m, made, residual)

    def _concatenated(self, parts: list[_Value]) -> _Value:
        require(all(part.channels % 4 == 0 for part in parts[:-1]), "a part's channels do not fill its places")
        require(len({part.dtype for part in parts}) == 1, "parts of a concatenation have other dtypes")
        whole = self.concatenate([part.plane for part in parts])
        return _Value(whole, sum(part.channels for part in parts), parts[0].dtype)

    @staticmethod
    def _check_residual(m: Int8Conv, y: Plane, residual: _Value) -> None:
        plane, channels, dtype = residual
        require((plane.h, plane.w, channels) == (y.h, y.w, m.out_channels), "a residual has another size")
        assert m.residual_scale is not None and m.residual_zero_point is not None
        expected = InputRange(float(m.residual_scale), int(m.residual_zero_point), dtype)
        require(byte_zero_point(expected) == plane.zero_point, "a residual has another range")
