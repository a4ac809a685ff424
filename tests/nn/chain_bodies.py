"""Bodies of int8 chains: int8 layers of every geometry, connected as `connect` connects them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from torchaccel import _native
from torchaccel.nn import InputRange, Int8AdaptiveAvgPool2d, Int8Conv2d, Int8MaxPool2d, SparseInt8Conv2d
from torchaccel.nn.quantize import QuantizeInt8
from torchaccel.ops import blocks

Pair = tuple[int, int]
INT8 = (torch.uint8, torch.int8)


@dataclass(frozen=True)
class Layer:
    """One layer of a recipe; what does not fit where it stands is left out, or made to fit."""

    pool: bool = False
    back: int = 0  # what it reads: the value so many before the last one
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    channels: int = 8
    pattern: str = "dense"
    density: float = 0.5
    activation: str = "relu"
    bias: bool = True
    residual: bool = False
    dtype: torch.dtype = torch.uint8
    coarse: int = 5  # about how many bits of the output's range its values fill, up to some that saturate


@dataclass(frozen=True)
class Recipe:
    layers: tuple[Layer, ...]
    size: tuple[int, int, int] = (8, 9, 10)
    dtype: torch.dtype = torch.float32  # of x
    quantize: bool = False  # in front
    ranges: Pair = (0, 0)  # which of two ranges the first and the other readers of x have
    average: torch.dtype | None = None  # what the average at the end gives
    exact: bool = False  # scales that are powers of two, so that outputs lie halfway between steps
    seed: int = 0


def _both(low: int, high: int) -> st.SearchStrategy[Pair]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    kernel = draw(st.one_of(st.just((1, 1)), st.just((3, 3)), _both(1, 4)))
    return Layer(
        pool=draw(st.integers(0, 5)) == 0,
        back=draw(st.sampled_from([0, 0, 0, 1, 2, 9])),
        kernel=kernel,
        stride=draw(st.one_of(st.just((1, 1)), _both(1, 3))),
        padding=draw(st.one_of(st.just((kernel[0] // 2, kernel[1] // 2)), _both(0, 5))),
        dilation=draw(st.one_of(st.just((1, 1)), _both(1, 3))),
        channels=draw(st.sampled_from([16, 8, 3, 4, 7, 12, 18, 40])),
        pattern=draw(st.sampled_from(["dense", "1x4", "1x4", "4x4", "4x4", "16x1", "unstructured"])),
        density=draw(st.sampled_from([0.3, 0.0, 1.0])),
        activation=draw(st.sampled_from(["none", "relu", "relu6"])),
        bias=draw(st.booleans()),
        residual=draw(st.booleans()),
        dtype=draw(st.sampled_from(INT8)),
        coarse=draw(st.sampled_from([2, 5, 6, 8])),
    )


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    dtype = draw(st.sampled_from([torch.float32, torch.float32, *INT8]))
    channels = draw(st.sampled_from([4, 8, 12, 20, 72] if dtype in INT8 else [1, 3, 4, 8, 21]))
    return Recipe(
        layers=tuple(draw(st.lists(layers(), min_size=3, max_size=8))),
        size=(channels, *draw(st.one_of(_both(1, 12), _both(10, 33)))),
        dtype=dtype,
        quantize=dtype == torch.float32 and draw(st.booleans()),
        ranges=draw(st.sampled_from([(0, 0), (0, 1), (1, 0)])),
        average=draw(st.sampled_from([None, None, None, torch.float32, *INT8])),
        exact=draw(st.booleans()),
        seed=draw(st.integers(0, 2**31)),
    )


@dataclass
class _Value:
    node: fx.Node
    size: tuple[int, int, int]
    range: InputRange


class _Maker:
    """Makes the layers of a recipe one by one."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.g = recipe, torch.Generator().manual_seed(recipe.seed)
        self.graph, self.modules = fx.Graph(), dict[str, nn.Module]()
        self.values: list[_Value] = []  # inside
        x = self.graph.placeholder("x")
        dtype = torch.uint8 if recipe.dtype == torch.float32 else recipe.dtype
        self.outside = [_Value(x, recipe.size, self.range(dtype, bits)) for bits in (5, 6)]
        self.readers = 0  # of x

    def range(self, dtype: torch.dtype, bits: int) -> InputRange:
        """Values of size 4 take about 2 ** bits steps."""
        scale = 4 / 2**bits * (1.0 if self.recipe.exact else 1.037)
        low = torch.iinfo(dtype).min
        return InputRange(scale, low + int(torch.randint(0, 256, (), generator=self.g)), dtype)

    def call(self, module: nn.Module, size: tuple[int, int, int], range: InputRange, *inputs: fx.Node) -> None:
        name = f"layer{len(self.modules)}"
        self.modules[name] = module.eval()
        self.values.append(_Value(self.graph.call_module(name, inputs), size, range))

    def source(self, layer: Layer) -> _Value:
        if layer.back >= len(self.values) and not layer.pool and not self.recipe.quantize:
            self.readers += 1
            return self.outside[self.recipe.ranges[min(self.readers - 1, 1)]]
        return self.values[-1 - min(layer.back, len(self.values) - 1)]

    def add(self, layer: Layer) -> None:
        window = layer.kernel, layer.stride, layer.padding, layer.dilation
        if layer.pool:
            if not self.values:
                return
            least = (min(p, k // 2) for p, k in zip(layer.padding, layer.kernel, strict=True))
            window = layer.kernel, layer.stride, tuple(least), layer.dilation
        x = self.source(layer)
        if layer.residual and not layer.pool:
            layer = self.joining(layer, x)
            window = layer.kernel, layer.stride, layer.padding, layer.dilation
        size = _output(x.size, window)
        if min(size) < 1 or max(size) > 40:
            return
        if layer.pool:
            self.call(Int8MaxPool2d(*window), (x.size[0], *size), x.range, x.node)
        else:
            self.convolve(layer, x, size)

    def joining(self, layer: Layer, x: _Value) -> Layer:
        """The layer with a window whose output a value that was made already can be added to."""
        sizes = [v.size[1:] for v in self.values if v is not x]
        plain = [replace(layer, kernel=(1, 1), stride=(s, s), padding=(0, 0), dilation=(1, 1)) for s in (1, 2, 3)]
        for able in (layer, *plain):
            if _output(x.size, (able.kernel, able.stride, able.padding, able.dilation)) in sizes:
                return able
        return layer

    def convolve(self, layer: Layer, x: _Value, size: Pair) -> None:
        o, added = layer.channels, None
        if layer.residual:
            added = next((v for v in reversed(self.values) if v.size[1:] == size and v is not x), None)
            o = o if added is None else added.size[0]
        pattern = layer.pattern
        if pattern != "dense" and added is None:
            o += -o % blocks.block_of(pattern)[0]
        if pattern != "dense" and blocks.fits(pattern, o, x.size[0]) is not None:
            pattern = "dense"
        made = self.conv(layer, pattern, x, o)
        if layer.activation != "none":
            made.fuse_activation(layer.activation)
        y = self.range(layer.dtype, layer.coarse)
        made.set_output(y.scale, y.zero_point, y.dtype)
        if added is not None:
            made.set_residual(added.range.scale, added.range.zero_point)
        self.call(made, (o, *size), y, x.node, *([] if added is None else [added.node]))

    def conv(self, layer: Layer, pattern: str, x: _Value, o: int) -> Int8Conv2d | SparseInt8Conv2d:
        c, (kh, kw) = x.size[0], layer.kernel
        conv = nn.Conv2d(c, o, layer.kernel, layer.stride, layer.padding, layer.dilation, bias=layer.bias)
        scale = 1 / (73 * math.sqrt(c * kh * kw))
        if self.recipe.exact:
            scale = 2.0 ** round(math.log2(scale))
        weight = torch.randint(-127, 128, (o, c, kh, kw), generator=self.g)
        weight[:, 0, 0, 0] = 127
        if pattern != "dense":
            rows, columns = blocks.block_of(pattern)
            keep = torch.rand(o // rows, c // columns, kh, kw, generator=self.g) < layer.density
            weight = weight * keep.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        conv.weight.data = weight * scale
        if layer.bias:
            conv.bias.data = torch.randint(-64, 65, (o,), generator=self.g) / 16  # type: ignore[union-attr]
        if pattern == "dense":
            return Int8Conv2d.from_float(conv, x.range)
        return SparseInt8Conv2d.from_float(conv, pattern, x.range)

    def body(self) -> fx.GraphModule:
        if self.recipe.quantize:
            x = self.outside[0]
            self.call(QuantizeInt8(x.range), x.size, x.range, x.node)
        for layer in self.recipe.layers:
            self.add(layer)
        if len(self.values) == self.recipe.quantize:
            self.add(Layer())
        last = self.values[-1]
        if self.recipe.average is not None:
            average = Int8AdaptiveAvgPool2d(1)
            average.set_input(last.range.scale, last.range.zero_point, last.range.dtype)
            if self.recipe.average in INT8:
                y = self.range(self.recipe.average, 7)
                average.set_output(y.scale, y.zero_point, y.dtype)
            self.call(average, (last.size[0], 1, 1), last.range, last.node)
        self.graph.output(self.values[-1].node)
        body = fx.GraphModule(self.modules, self.graph)
        body.graph.eliminate_dead_code()
        body.recompile()
        return body


def _output(size: tuple[int, int, int], window: tuple[Pair, Pair, Pair, Pair]) -> tuple[int, int]:
    h, w = ((s + 2 * p - d * (k - 1) - 1) // st + 1 for s, k, st, p, d in zip(size[1:], *window, strict=True))
    return h, w


def make(recipe: Recipe) -> fx.GraphModule:
    """The layers of a recipe as the graph that a chain holds."""
    with torch.no_grad():
        return _Maker(recipe).body()


def images(recipe: Recipe, n: int, finite: bool = True) -> Tensor:
    """[n, C, H, W] of the type that a recipe's body reads."""
    g, shape = torch.Generator().manual_seed(recipe.seed + n), (n, *recipe.size)
    if recipe.dtype != torch.float32:
        return torch.randint(0, 256, shape, generator=g, dtype=torch.uint8).view(recipe.dtype)
    x = torch.randn(shape, generator=g) * 8
    if not finite:
        special = torch.tensor([float("nan"), float("inf"), -float("inf"), 3e38, -3e38, -0.0])
        x.view(-1)[::7] = special.repeat(x.numel() // 42 + 1)[: -(-x.numel() // 7)]
    return x


@contextmanager
def running_on(isa: str, threads: int) -> Iterator[None]:
    """One instruction set, and so many threads."""
    before, count = _native.isa(), torch.get_num_threads()
    if before is not None:
        _native.force_isa(isa)
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(count)
        if before is not None:
            _native.force_isa(before)
