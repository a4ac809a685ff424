"""Recipes of chains' bodies: layers of every geometry, and how their graphs are made."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from torchaccel.nn import InputRange
from torchaccel.nn.upsample import Upsample
from torchaccel.ops import blocks
from torchaccel.ops._chain_step import CURVES

Pair = tuple[int, int]
Size = tuple[int, int, int]
Window = tuple[Pair, Pair, Pair, Pair]
INT8 = (torch.uint8, torch.int8)
PATTERNS = "dense", "1x4", "1x4", "4x4", "4x4", "16x1", "unstructured"
ACTIVATIONS = "none", "none", "relu", "relu", "relu6", "relu6", "gelu", "silu"
CHANNELS = 16, 8, 3, 4, 7, 12, 18, 40
DEPTHWISE = 1 << 10
MOST_CHANNELS = 400


@dataclass(frozen=True)
class Layer:
    """One layer of a recipe; what does not fit where it stands is left out, or made to fit."""

    pool: bool = False
    mean: bool = False  # of a pool: its average rather than its maximum
    grow: int = 0  # a transposed convolution of such a stride
    larger: int = 0  # upsampling by such a factor
    back: int = 0  # what it reads: the value so many before the last one
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    channels: int = 8
    groups: int = 1  # at most; of layers that are not pruned in blocks
    pattern: str = "dense"
    density: float = 0.5
    activation: str = "relu"
    bias: bool = True
    residual: bool = False
    summed: bool = False  # whether its output is added to another value of its size, by a layer of its own
    joined: int = 0  # how many other values of its size are concatenated with its output
    dtype: torch.dtype = torch.uint8
    coarse: int = 5  # about how many bits of the output's range its values fill, up to some that saturate

    @property
    def curved(self) -> bool:
        return self.activation in CURVES

    def window(self) -> Window:
        return self.kernel, self.stride, self.padding, self.dilation


@dataclass(frozen=True)
class Recipe:
    layers: tuple[Layer, ...]
    size: Size = (8, 9, 10)
    dtype: torch.dtype = torch.float32  # of x
    quantize: bool = False  # in front
    ranges: Pair = (0, 0)  # which of two ranges the first and the other readers of x have
    average: torch.dtype | None = None  # what the average at the end gives
    exact: bool = False  # scales that are powers of two, so that outputs lie halfway between steps
    seed: int = 0


def _both(low: int, high: int) -> st.SearchStrategy[Pair]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


def extents() -> st.SearchStrategy[Pair]:
    """Heights and widths of images."""
    return st.one_of(_both(1, 12), _both(10, 33))


@st.composite
def layers(draw: st.DrawFn, patterns: Sequence[str] = PATTERNS, channels: Sequence[int] = CHANNELS) -> Layer:
    kernel = draw(st.one_of(st.just((1, 1)), st.just((3, 3)), _both(1, 4)))
    groups = draw(st.sampled_from([1, 1, 1, 2, 4, DEPTHWISE]))
    return Layer(
        pool=draw(st.integers(0, 5)) == 0,
        mean=draw(st.booleans()),
        grow=draw(st.sampled_from([0] * 8 + [1, 2, 2, 3])),
        larger=draw(st.sampled_from([0] * 8 + [1, 2, 3])),
        back=draw(st.sampled_from([0, 0, 0, 1, 2, 9])),
        kernel=kernel,
        stride=draw(st.one_of(st.just((1, 1)), _both(1, 3))),
        padding=draw(st.one_of(st.just((kernel[0] // 2, kernel[1] // 2)), _both(0, 5))),
        dilation=draw(st.one_of(st.just((1, 1)), _both(1, 3))),
        channels=draw(st.sampled_from(channels)),
        groups=groups,
        pattern=draw(st.sampled_from(patterns)) if groups == 1 else "dense",
        density=draw(st.sampled_from([0.3, 0.0, 1.0])),
        activation=draw(st.sampled_from(ACTIVATIONS)),
        bias=draw(st.booleans()),
        residual=draw(st.booleans()),
        summed=draw(st.integers(0, 3)) == 0,
        joined=draw(st.sampled_from([0, 0, 0, 1, 1, 2])),
        dtype=draw(st.sampled_from(INT8)),
        coarse=draw(st.sampled_from([2, 5, 6, 8])),
    )


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    dtype = draw(st.sampled_from([torch.float32, torch.float32, *INT8]))
    channels = draw(st.sampled_from([4, 8, 12, 20, 72] if dtype in INT8 else [1, 3, 4, 8, 21]))
    return Recipe(
        layers=tuple(draw(st.lists(layers(), min_size=3, max_size=8))),
        size=(channels, *draw(extents())),
        dtype=dtype,
        quantize=dtype == torch.float32 and draw(st.booleans()),
        ranges=draw(st.sampled_from([(0, 0), (0, 1), (1, 0)])),
        average=draw(st.sampled_from([None, None, None, torch.float32, *INT8])),
        exact=draw(st.booleans()),
        seed=draw(st.integers(0, 2**31)),
    )


_POINT: dict[str, Any] = {"kernel": (1, 1), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}


@dataclass
class Value:
    node: fx.Node
    size: Size
    range: InputRange | None = None


class Maker(ABC):
    """Makes the layers of a recipe one by one."""

    unpruned: str  # the pattern that fits all sizes
    needed: tuple[type[nn.Module], ...]  # layers, one of which a chain has

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.g = recipe, torch.Generator().manual_seed(recipe.seed)
        self.graph, self.modules = fx.Graph(), dict[str, nn.Module]()
        self.x = self.graph.placeholder("x")
        self.values: list[Value] = []  # inside

    @abstractmethod
    def outside(self) -> Value:
        """The tensor outside, for one more reader."""

    @abstractmethod
    def conv(self, layer: Layer, x: Value, o: int, added: Value | None) -> tuple[nn.Module, InputRange | None]:
        """A convolution, and the range of its output."""

    @abstractmethod
    def sum(self, layer: Layer, a: Value, b: Value) -> tuple[nn.Module, InputRange | None]:
        """A sum, and the range of its output."""

    @abstractmethod
    def pool(self, layer: Layer, x: Value) -> tuple[nn.Module, InputRange | None]:
        """A pooling layer, and the range of its output."""

    @abstractmethod
    def average(self, last: Value) -> nn.Module:
        """The average that ends the chain."""

    def call(self, module: nn.Module, size: Size, range: InputRange | None, *inputs: fx.Node) -> None:
        name = f"layer{len(self.modules)}"
        self.modules[name] = module.eval()
        self.values.append(Value(self.graph.call_module(name, inputs), size, range))

    def source(self, layer: Layer) -> Value:
        if layer.back >= len(self.values) and not layer.pool:
            return self.outside()
        return self.values[-1 - min(layer.back, len(self.values) - 1)]

    def add(self, layer: Layer) -> None:
        if layer.larger and not layer.pool:
            self.upsample(layer)
            return
        if layer.pool:
            if not self.values:
                return
            least = tuple(min(p, k // 2) for p, k in zip(layer.padding, layer.kernel, strict=True))
            layer = replace(layer, padding=least, dilation=(1, 1) if layer.mean else layer.dilation)
        if layer.grow and not layer.pool:
            layer = replace(layer, **_POINT, residual=False, pattern="dense")
        x = self.source(layer)
        if layer.residual and not layer.pool:
            layer = self.joining(layer, x)
        grown = layer.grow if layer.grow and not layer.pool else 1
        size = grown * (made := _output(x.size, layer.window()))[0], grown * made[1]
        if min(size) < 1 or max(size) > 40:
            return
        if layer.pool:
            made, y = self.pool(layer, x)
            self.call(made, (x.size[0], *size), y, x.node)
        else:
            self.convolve(layer, x, size)

    def joining(self, layer: Layer, x: Value) -> Layer:
        """The layer with a window whose output a value that was made already can be added to."""
        sizes = [v.size[1:] for v in self.values if v is not x]
        plain = [replace(layer, **_POINT | {"stride": (s, s)}) for s in (1, 2, 3)]
        return next((able for able in (layer, *plain) if _output(x.size, able.window()) in sizes), layer)

    def convolve(self, layer: Layer, x: Value, size: Pair) -> None:
        o, added = layer.channels, None
        if layer.residual:
            added = next((v for v in reversed(self.values) if v.size[1:] == size and v is not x), None)
            o = o if added is None else added.size[0]
        if layer.pattern != "dense" and added is None:
            o += -o % blocks.block_of(layer.pattern)[0]
        if layer.pattern != "dense" and blocks.fits(layer.pattern, o, x.size[0]) is not None:
            layer = replace(layer, pattern=self.unpruned)
        made, y = self.conv(layer, x, o, added)
        if layer.activation != "none":
            made.fuse_activation(layer.activation)  # type: ignore[operator]
        self.call(made, (o, *size), y, x.node, *([] if added is None else [added.node]))

    def upsample(self, layer: Layer) -> None:
        if not self.values:
            return
        x = self.values[-1 - min(layer.back, len(self.values) - 1)]
        c, h, w = x.size
        if layer.larger * max(h, w) <= 40:
            self.call(Upsample(layer.larger), (c, layer.larger * h, layer.larger * w), x.range, x.node)

    def total(self, layer: Layer) -> None:
        """Add another value to the last one: one inside, the tensor outside, or itself."""
        last = self.values[-1]
        inside = [v for v in self.values if v.size == last.size]
        other = inside[-2] if len(inside) > 1 else self.outside() if self.recipe.size == last.size else last
        a, b = (last, other) if layer.bias else (other, last)
        made, y = self.sum(layer, a, b)
        self.call(made, last.size, y, a.node, b.node)

    def alike(self, value: Value, others: list[Value]) -> list[Value]:
        """Those of the others that lie as a value does, which may be made to lie as they do."""
        return others

    def join(self, layer: Layer) -> None:
        """Concatenate the last value with others; only the last part may have channels that fill no place."""
        last = self.values[-1]
        others = [v for v in self.values[:-1] if v.size[1:] == last.size[1:]][-layer.joined :]
        parts = sorted([last, *self.alike(last, others)], key=lambda v: v.size[0] % 4 != 0)
        whole = [v for v in parts if v.size[0] % 4 == 0]
        parts = parts[: len(whole) + 1]
        channels = sum(v.size[0] for v in parts)
        if len(parts) > 1 and channels < MOST_CHANNELS:
            node = self.graph.call_function(torch.cat, ([v.node for v in parts], 1))
            self.values.append(Value(node, (channels, *last.size[1:]), last.range))

    def transposed(self, layer: Layer, c: int, o: int) -> nn.ConvTranspose2d:
        conv = nn.ConvTranspose2d(c, o, layer.grow, layer.grow, bias=layer.bias)
        weight = torch.randint(-127, 128, conv.weight.shape, generator=self.g)
        weight[0] = 127
        conv.weight.data = weight * 2.0 ** round(math.log2(1 / (73 * math.sqrt(c))))
        if layer.bias:
            conv.bias.data = torch.randint(-64, 65, (o,), generator=self.g) / 16  # type: ignore[union-attr]
        return conv

    def kept(self, layer: Layer, o: int, c: int) -> Tensor:
        """[o, c, kh, kw]: which weights are not pruned."""
        rows, columns = (1, 1) if layer.pattern == "dense" else blocks.block_of(layer.pattern)
        keep = torch.rand(o // rows, c // columns, *layer.kernel, generator=self.g) < layer.density
        return keep.repeat_interleave(rows, 0).repeat_interleave(columns, 1)

    def groups(self, layer: Layer, o: int, c: int) -> int:
        return max(n for n in range(1, layer.groups + 1) if c % n == 0 and o % n == 0) if layer.groups > 1 else 1

    def body(self) -> fx.GraphModule:
        for layer in self.recipe.layers:
            before = len(self.values)
            self.add(layer)
            if layer.summed and self.values:
                self.total(layer)
            if layer.joined and len(self.values) > max(before, 1):
                self.join(layer)
        if not any(isinstance(module, self.needed) for module in self.modules.values()):
            self.add(Layer(pattern=self.unpruned))
        last = self.values[-1]
        if self.recipe.average is not None:
            self.call(self.average(last), (last.size[0], 1, 1), last.range, last.node)
        self.graph.output(self.values[-1].node)
        body = fx.GraphModule(self.modules, self.graph)
        body.graph.eliminate_dead_code()
        body.recompile()
        return body


def _output(size: Size, window: Window) -> Pair:
    h, w = ((s + 2 * p - d * (k - 1) - 1) // st + 1 for s, k, st, p, d in zip(size[1:], *window, strict=True))
    return h, w
