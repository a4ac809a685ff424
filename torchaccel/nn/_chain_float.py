"""Plans of float32 chains: what their layers mean as steps."""

from __future__ import annotations

import struct
from typing import Any

import torch
from torch import fx, nn

from torchaccel.nn import _chain_winograd as winograd
from torchaccel.nn._chain_builder import ACTIVATIONS, Builder, require
from torchaccel.nn._chain_layout import Entry, Plane, Window
from torchaccel.nn._chain_weights import GROUP, Groups, group
from torchaccel.nn._transposed import of_places
from torchaccel.nn._weights import pair
from torchaccel.nn.add import Add
from torchaccel.nn.concatenation import parts_of
from torchaccel.nn.contiguous import Contiguous
from torchaccel.nn.dense import DenseConv2d, DenseConvTranspose2d
from torchaccel.nn.sparse_conv2d import SparseConv2d
from torchaccel.nn.upsample import Upsample
from torchaccel.ops import blocks
from torchaccel.ops._chain_step import CURVES, TILE, Kind, Step


def _word(value: float) -> int:
    """The bits of a float32, as an int32."""
    return int(struct.unpack("<i", struct.pack("<f", value))[0])


Conv = SparseConv2d | DenseConv2d | DenseConvTranspose2d


def window_of(m: Conv | nn.MaxPool2d | nn.AvgPool2d) -> Window:
    if isinstance(m, DenseConvTranspose2d):
        return Window()
    sizes = (("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1))
    return Window(*(pair(type(m).__name__, name, getattr(m, name, 1), least) for name, least in sizes))


def _group(m: Conv) -> Groups:
    if isinstance(m, DenseConvTranspose2d):
        return group(of_places("ConvChain", m), True, window_of(m))
    if isinstance(m, DenseConv2d):
        shared = m.groups == 1 or m.out_channels // m.groups % GROUP == 0
        return group(m.weight.detach(), shared, window_of(m), m.groups)
    weight = blocks.from_blocks(m.values, m.columns, m.row_offsets, m.in_channels, m.kernel_size)
    return group(weight, blocks.block_of(m.pattern)[0] % GROUP == 0, window_of(m))


def _as_conv(m: Add | nn.AvgPool2d, channels: int) -> DenseConv2d:
    """A sum as a depthwise convolution of ones that takes a residual, or an average as one of its window."""
    window, activation = (Window(), m.activation) if isinstance(m, Add) else (window_of(m), "none")
    settings: dict[str, Any] = {"groups": channels, "bias": False, "activation": activation, "device": "meta"}
    conv = DenseConv2d(channels, channels, *window, **settings)  # without random numbers
    weight = torch.full(conv.weight.shape, 1 / (conv.kernel_size[0] * conv.kernel_size[1]))
    conv.weight = nn.Parameter(weight, requires_grad=False)
    return conv


def may_transform(m: SparseConv2d | DenseConv2d) -> bool:
    """Whether a layer may be one of Winograd's."""
    return isinstance(m, DenseConv2d) and m.groups == 1 and winograd.fits(m.weight, window_of(m))


class FloatBuilder(Builder):
    def __init__(
        self, body: fx.GraphModule, size: tuple[int, int, int], dtype: torch.dtype, packed: dict[nn.Module, Groups]
    ) -> None:
        super().__init__(body, size, dtype, torch.float32)
        self.packed = packed
        self.dense = dict[Entry, DenseConv2d]()  # whose form depends on their blocks

    def load(self) -> Plane:
        require(self.dtype == torch.float32, "x is not float32")
        c, h, w = self.size
        plane = Plane(c, h, w)
        self.entries.append(Entry(Step(Kind.LOAD, planes=c, h=h, w=w, channels=c), y=plane))
        return plane

    def conv(self, m: Conv, x: Plane, residual: Plane | None) -> Plane:
        require(m.in_channels == x.planes, "a convolution reads other channels")
        window, spread = window_of(m), m.kernel_size[0] if isinstance(m, DenseConvTranspose2d) else 1
        entry = self.windowed(Step(Kind.CONV, tile=TILE), x, m.out_channels, window, 0, spread)
        step, y = entry.step, entry.y
        assert y is not None
        step.activation = CURVES.get(m.activation, 0)
        if residual is not None:
            require((residual.planes, residual.h, residual.w) == (y.planes, y.h, y.w), "a residual has another size")
            entry.residual = residual
        if isinstance(m, DenseConv2d) and may_transform(m):
            self.dense[entry] = m
            entry.weight_bytes = 4 * m.weight.numel()
        else:
            self._multiply(entry, m)
        bias = (torch.zeros(m.out_channels) if m.bias is None else m.bias).repeat(spread**2)
        step.floats = self.floats.keep(torch.cat([torch.tensor(ACTIVATIONS[m.activation]), bias]))
        return y

    def _multiply(self, entry: Entry, m: Conv) -> None:
        packed = self.packed.get(m) or _group(m)
        if isinstance(m, SparseConv2d):  # dense weights are as large as all else, and quickly packed
            self.packed[m] = packed
        self._keep_groups(entry, packed)

    def _keep_groups(self, entry: Entry, packed: Groups) -> None:
        step = entry.step
        step.block_rows, step.chunks = GROUP if packed.shared else 1, packed.chunks
        step.values, step.starts = self.values.keep(packed.values), self.indices.keep(packed.groups)
        step.row_offsets, entry.columns = self.indices.keep(packed.first), packed.columns.flatten()
        entry.weight_bytes = 4 * (packed.values.numel() + packed.columns.numel())

    def _lay_out_windowed(self, entry: Entry, images: int) -> None:
        super()._lay_out_windowed(entry, images)
        if entry not in self.dense:
            return
        m = self.dense[entry]
        assert entry.y is not None and entry.y.grid is not None
        if winograd.saves(entry.window, entry.y.grid):
            self._transform(entry, m)
        else:
            self._multiply(entry, m)

    def _transform(self, entry: Entry, m: DenseConv2d) -> None:
        """Make a convolution one of strips, which reads its input at Winograd's points."""
        x, y, window, step = entry.x, entry.y, entry.window, entry.step
        assert x is not None and y is not None and y.grid is not None
        weights = winograd.transformed(m.weight.detach(), window)
        phases, points = window.stride[1], winograd.points(window)
        reads = (y.grid.block_h - 1) * window.stride[0] + window.reach()[0] + 1
        grid = y.grid._replace(block_h=reads, block_w=winograd.strips(y.grid))
        of_points = Plane(points * phases * x.planes, x.h, x.w, grid=grid, planar=True)
        width = (y.grid.block_w - 1) * phases + window.kernel[1]
        transform = Step(Kind.TRANSFORM, planes=x.planes, w=width, stride_w=phases, points=points)
        self.part.append(Entry(transform, x, of_points, window=window))
        step.kind, step.points, step.chunks, entry.columns = Kind.WINOGRAD, points, weights.chunks, weights.columns
        step.values, step.row_offsets = self.values.keep(weights.values), self.indices.keep(weights.first)
        entry.x = of_points
        entry.window = Window((window.kernel[0], 1), (window.stride[0], 1), dilation=(window.dilation[0], 1))

    def upsample(self, m: Upsample, x: Plane) -> Plane:
        """A copy for each place of a square: products with one."""
        entry = self.windowed(Step(Kind.CONV, tile=TILE), x, x.planes, Window(), 0, m.factor)
        self._keep_groups(entry, group(torch.eye(x.planes).repeat(m.factor**2, 1)[..., None, None], False, Window()))
        bounds = torch.tensor(ACTIVATIONS["none"])
        entry.step.floats = self.floats.keep(torch.cat([bounds, torch.zeros(entry.step.planes)]))
        assert entry.y is not None
        return entry.y

    def max_pool(self, m: nn.MaxPool2d, x: Plane) -> Plane:
        window = window_of(m)
        require(all(2 * p <= k for p, k in zip(window.padding, window.kernel, strict=True)), "too much padding")
        entry = self.windowed(Step(Kind.MAX_POOL), x, x.planes, window, 0)
        entry.step.blocks, entry.padding = len(window.taps()), _word(-torch.inf)
        entry.columns = torch.arange(entry.step.blocks) * x.planes
        assert entry.y is not None
        return entry.y

    def average(self, x: Plane) -> None:
        self.entries.append(Entry(Step(Kind.AVERAGE, planes=x.planes, h=x.h, w=x.w, channels=x.planes), x))
        self.out = (x.planes, 1, 1), torch.float32

    def store(self, x: Plane) -> None:
        self.entries.append(Entry(Step(Kind.STORE, planes=x.planes, h=x.h, w=x.w, channels=x.planes), x))
        self.out = (x.planes, x.h, x.w), torch.float32

    def walk(self) -> None:
        values: dict[fx.Node, Plane] = {}
        for node in self.body.graph.nodes:
            if node.op == "placeholder":
                values[node] = self.load()
            elif (parts := parts_of(node)) is not None:
                values[node] = self.concatenate([values[part] for part in parts])
            elif node.op == "output":
                if self.out is None:
                    self.store(values[node.args[0]])
            else:
                m, inputs = self.module(node), [values[source] for source in node.args]
                if isinstance(m, Add | nn.AvgPool2d):
                    m = _as_conv(m, inputs[0].planes)
                if isinstance(m, Conv):
                    values[node] = self.conv(m, inputs[0], inputs[1] if len(inputs) > 1 else None)
                elif isinstance(m, Contiguous):
                    values[node] = inputs[0]
                elif isinstance(m, Upsample):
                    values[node] = self.upsample(m, inputs[0])
                elif isinstance(m, nn.MaxPool2d):
                    values[node] = self.max_pool(m, inputs[0])
                else:
                    self.average(inputs[0])
