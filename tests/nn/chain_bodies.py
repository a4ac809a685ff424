"""Bodies of int8 chains: int8 layers of every geometry, connected as `connect` connects them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn

from tests.nn.chain_recipes import INT8, Layer, Maker, Recipe, Value, recipes
from torchaccel import _native
from torchaccel.nn import (
    ConvChain,
    InputRange,
    Int8AdaptiveAvgPool2d,
    Int8Add,
    Int8AvgPool2d,
    Int8Conv2d,
    Int8ConvTranspose2d,
    Int8MaxPool2d,
    SparseInt8Conv2d,
)
from torchaccel.nn.quantize import QuantizeInt8
from torchaccel.ops.conv_chain import _reference

__all__ = ["Layer", "Recipe", "by_reference", "images", "laid_out", "make", "recipes", "running_on"]


class _Int8Maker(Maker):
    unpruned = "dense"
    needed = Int8Conv2d, Int8ConvTranspose2d, SparseInt8Conv2d, Int8Add

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        dtype = torch.uint8 if recipe.dtype == torch.float32 else recipe.dtype
        self.ranges = [self.range(dtype, bits) for bits in (5, 6)]
        self.readers = 0  # of x
        if recipe.quantize:
            self.call(QuantizeInt8(self.ranges[0]), recipe.size, self.ranges[0], self.x)

    def range(self, dtype: torch.dtype, bits: int) -> InputRange:
        """Values of size 4 take about 2 ** bits steps."""
        scale = 4 / 2**bits * (1.0 if self.recipe.exact else 1.037)
        low = torch.iinfo(dtype).min
        return InputRange(scale, low + int(torch.randint(0, 256, (), generator=self.g)), dtype)

    def outside(self) -> Value:
        if self.recipe.quantize:
            return self.values[0]
        self.readers += 1
        return Value(self.x, self.recipe.size, self.ranges[self.recipe.ranges[min(self.readers - 1, 1)]])

    def conv(self, layer: Layer, x: Value, o: int, added: Value | None) -> tuple[nn.Module, InputRange]:
        if layer.grow:
            grown = Int8ConvTranspose2d.from_float(self.transposed(layer, x.size[0], o), x.range)
            y = self.range(layer.dtype, layer.coarse)
            grown.set_output(y.scale, y.zero_point, y.dtype)
            return grown, y
        groups, (kh, kw) = self.groups(layer, o, x.size[0]), layer.kernel
        conv = nn.Conv2d(x.size[0], o, *layer.window(), groups=groups, bias=layer.bias)
        c = x.size[0] // groups
        scale = 1 / (73 * math.sqrt(c * kh * kw))
        if self.recipe.exact:
            scale = 2.0 ** round(math.log2(scale))
        weight = torch.randint(-127, 128, (o, c, kh, kw), generator=self.g)
        weight[:, 0, 0, 0] = 127
        if layer.pattern != "dense" or groups > 1:
            weight = weight * self.kept(layer, o, c)
        conv.weight.data = weight * scale
        if layer.bias:
            conv.bias.data = torch.randint(-64, 65, (o,), generator=self.g) / 16  # type: ignore[union-attr]
        made: Int8Conv2d | SparseInt8Conv2d
        if layer.pattern == "dense":
            made = Int8Conv2d.from_float(conv, x.range)
        else:
            made = SparseInt8Conv2d.from_float(conv, layer.pattern, x.range)
        y = self.range(layer.dtype, layer.coarse)
        made.set_output(y.scale, y.zero_point, y.dtype)
        if added is not None and added.range is not None:
            made.set_residual(added.range.scale, added.range.zero_point, added.range.dtype)
        return made, y

    def alike(self, value: Value, others: list[Value]) -> list[Value]:
        layer = self.modules.get(str(value.node.target))
        if others and isinstance(layer, self.needed):
            value.range = y = others[0].range
            assert y is not None
            layer.set_output(y.scale, y.zero_point, y.dtype)
        return [other for other in others if other.range == value.range]

    def sum(self, layer: Layer, a: Value, b: Value) -> tuple[nn.Module, InputRange]:
        assert a.range is not None and b.range is not None
        made, y = Int8Add.from_ranges(a.range, b.range, layer.activation), self.range(layer.dtype, layer.coarse)
        made.set_output(y.scale, y.zero_point, y.dtype)
        return made, y

    def pool(self, layer: Layer, x: Value) -> tuple[nn.Module, InputRange]:
        assert x.range is not None
        if not layer.mean:
            return Int8MaxPool2d(*layer.window()), x.range
        made, y = Int8AvgPool2d(layer.kernel, layer.stride, layer.padding), self.range(layer.dtype, layer.coarse)
        made.set_input(x.range.scale, x.range.zero_point, x.range.dtype)
        made.set_output(y.scale, y.zero_point, y.dtype)
        return made, y

    def average(self, last: Value) -> nn.Module:
        average = Int8AdaptiveAvgPool2d(1)
        assert last.range is not None
        average.set_input(last.range.scale, last.range.zero_point, last.range.dtype)
        if self.recipe.average in INT8:
            y = self.range(self.recipe.average, 7)
            average.set_output(y.scale, y.zero_point, y.dtype)
        return average


def make(recipe: Recipe) -> fx.GraphModule:
    """The layers of a recipe as the graph that a chain holds."""
    with torch.no_grad():
        return _Int8Maker(recipe).body()


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


def laid_out(x: Tensor, layout: str) -> Tensor:
    if layout == "gaps":
        wide = x.new_ones(*x.shape[:-1], 2 * x.shape[-1] + 1)
        wide[..., : 2 * x.shape[-1] : 2] = x
        return wide[..., : 2 * x.shape[-1] : 2]
    return x.contiguous(memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format)


def by_reference(chain: ConvChain, x: Tensor, lanes: int = 1) -> Tensor:
    p = chain.plan(x, lanes)
    assert p is not None
    return _reference(
        x, p.steps, p.values, p.indices, p.floats, p.arena, p.arena_bytes, p.late_steps, p.lanes, p.out_size,
        p.out_dtype,
    )  # fmt: skip


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
