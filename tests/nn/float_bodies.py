"""Bodies of float32 chains, and what they give in float64 with how far float32 may be from it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from tests.nn.chain_recipes import Layer, Maker, Pair, Recipe, Value, extents, layers
from torchaccel.nn import SparseConv2d, _chain_float
from torchaccel.nn.add import Add
from torchaccel.nn.dense import DenseConv2d, DenseConvTranspose2d
from torchaccel.nn.upsample import Upsample
from torchaccel.ops._chain_step import CURVES, SLAB
from torchaccel.ops._winograd import OUTPUTS
from torchaccel.testing import assert_exact_enough

PATTERNS = "unstructured", "unstructured", "16x1", "1x4", "4x4", "2:4", "dense"
CHANNELS = 16, 8, 3, 4, 7, 12, 18, 40, SLAB + 8
LARGE = 1e30
"""Sums of larger numbers may overflow in float32."""


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    return Recipe(
        layers=tuple(draw(st.lists(layers(PATTERNS, CHANNELS), min_size=3, max_size=8))),
        size=(draw(st.sampled_from([1, 3, 4, 8, 21])), *draw(extents())),
        average=draw(st.sampled_from([None, None, torch.float32])),
        seed=draw(st.integers(0, 2**31)),
    )


class _FloatMaker(Maker):
    unpruned = "unstructured"
    needed = (SparseConv2d,)

    def outside(self) -> Value:
        return Value(self.x, self.recipe.size)

    def conv(self, layer: Layer, x: Value, o: int, added: Value | None) -> tuple[nn.Module, None]:
        if layer.grow:
            return DenseConvTranspose2d.from_float(self.transposed(layer, x.size[0], o)), None
        groups = self.groups(layer, o, x.size[0])
        conv = nn.Conv2d(x.size[0], o, *layer.window(), groups=groups, bias=layer.bias)
        weight = torch.randn(conv.weight.shape, generator=self.g)
        if layer.pattern != "dense" or groups > 1:
            weight = weight * self.kept(layer, o, x.size[0] // groups)
        conv.weight.data = weight / math.sqrt(max(float(weight.count_nonzero()) / o, 1))
        if layer.bias:
            conv.bias.data = torch.randn(o, generator=self.g)  # type: ignore[union-attr]
        dense = layer.pattern == "dense"
        return DenseConv2d.from_float(conv) if dense else SparseConv2d.from_float(conv, layer.pattern), None

    def sum(self, layer: Layer, a: Value, b: Value) -> tuple[nn.Module, None]:
        return Add(layer.activation), None

    def pool(self, layer: Layer, x: Value) -> tuple[nn.Module, None]:
        if layer.mean:
            return nn.AvgPool2d(layer.kernel, layer.stride, layer.padding), None
        return nn.MaxPool2d(*(pair if pair[0] != pair[1] else pair[0] for pair in layer.window())), None  # type: ignore[arg-type]

    def average(self, last: Value) -> nn.Module:
        return nn.AdaptiveAvgPool2d(1)


def make(recipe: Recipe) -> fx.GraphModule:
    """The layers of a recipe as the graph that a chain holds."""
    with torch.no_grad():
        return _FloatMaker(recipe).body()


def spoil(x: Tensor, seed: int) -> Tensor:
    """Every other image with a few numbers that are not finite, or nearly not."""
    x, g = x.clone(), torch.Generator().manual_seed(seed)
    for image in x[::2]:
        for special in (float("nan"), float("inf"), -float("inf"), -3e38):
            image.view(-1)[int(torch.randint(0, image.numel(), (), generator=g))] = special
    return x


class Expected(NamedTuple):
    """What activations are, [N, C, H, W] each."""

    exact: Tensor  # float64
    error: Tensor  # float64, the square of the magnitude that `assert_exact_enough` takes; errors add up as random ones
    loose: Tensor  # whether a window, with its pruned weights, reads what is not finite: they may be anything
    lost: Tensor  # whether weights that are kept read NaN: they must be NaN

    def in_any_channel(self) -> Expected:
        """What is loose in all channels, as where the reference's products with zero read it."""
        return self._replace(loose=self.loose.amax(1, keepdim=True).expand_as(self.loose))

    def check(self, y: Tensor) -> None:
        """Check the first images of a batch."""
        exact, error, loose, lost = (tensor[: len(y)] for tensor in self)
        assert (y.dtype, y.shape) == (torch.float32, exact.shape)
        assert y[lost].isnan().all()
        assert_exact_enough(y[~loose], exact[~loose], error[~loose].sqrt())


def _spread(x: Tensor, stride: Pair, together: int) -> Tensor:
    """The greatest of what is read where `together` neighbouring outputs may be made of all their inputs."""
    around = (together - 1) * stride[1]
    return F.max_pool2d(x, (1, 2 * around + 1), 1, (0, around))


def _activated(y: Tensor, activation: str) -> Tensor:
    if activation in CURVES:
        return F.silu(y) if activation == "silu" else F.gelu(y)
    bounds = {"none": (-math.inf, math.inf), "relu": (0, math.inf), "relu6": (0, 6)}[activation]
    return y.clamp(*bounds)


class _Expecting(fx.Interpreter):
    def call_module(self, target: Any, args: tuple, kwargs: dict) -> Expected:
        module = self.module.get_submodule(target)
        if isinstance(module, SparseConv2d | DenseConv2d):
            return self.conv(module, *args)
        if isinstance(module, DenseConvTranspose2d):
            return self.transposed(module, *args)
        if isinstance(module, Add):
            return self.sum(module, *args)
        if isinstance(module, Upsample):
            return Expected(*(module(tensor.double()).to(tensor.dtype) for tensor in args[0])).in_any_channel()
        if isinstance(module, nn.AvgPool2d):
            return self.averages(module, *args)
        return self.max_pool(module, *args) if isinstance(module, nn.MaxPool2d) else self.average(*args)

    def call_function(self, target: Any, args: tuple, kwargs: dict) -> Expected:
        assert target is torch.cat
        return Expected(*(torch.cat(parts, 1) for parts in zip(*args[0], strict=True)))

    def conv(self, m: SparseConv2d | DenseConv2d, x: Expected, residual: Expected | None = None) -> Expected:
        def over(tensor: Tensor, weight: Tensor, spread: bool = False) -> Tensor:
            padded = F.pad(tensor.double(), (padding[1], padding[1], padding[0], padding[0]))
            padded = _spread(padded, m.stride, together) if spread else padded
            return F.conv2d(padded, weight.double(), None, m.stride, 0, m.dilation, groups)

        padding = _chain_float.window_of(m).padding
        plain = m.to_float()
        weight, groups = plain.weight.detach(), plain.groups
        bias = (weight.new_zeros(m.out_channels) if m.bias is None else m.bias).view(-1, 1, 1).double()
        together = OUTPUTS if _chain_float.may_transform(m) else 1
        exact = over(x.exact, weight) + bias
        size = over(x.exact.abs(), weight.abs(), spread=True) + bias.abs()
        error = over(x.error, weight**2)
        # Places that a step fills up may be of any channel too.
        loose = over(x.in_any_channel().loose, torch.ones_like(weight), spread=True) > 0
        lost = over(x.lost, weight != 0) > 0
        if residual is not None:
            exact, size, error = exact + residual.exact, size + residual.exact.abs(), error + residual.error
            loose, lost = loose | residual.loose, lost | residual.lost
        exact = _activated(exact, m.activation)
        return Expected(exact, error + weight[0].numel() * size**2, loose, lost)

    def transposed(self, m: DenseConvTranspose2d, x: Expected) -> Expected:
        def over(tensor: Tensor, weight: Tensor) -> Tensor:
            return F.conv_transpose2d(tensor.double(), weight, None, m.stride)

        weight = m.weight.detach().double()
        bias = (weight.new_zeros(m.out_channels) if m.bias is None else m.bias.detach()).view(-1, 1, 1).double()
        exact, size = over(x.exact, weight) + bias, over(x.exact.abs(), weight.abs()) + bias.abs()
        loose, lost = over(x.loose, torch.ones_like(weight)) > 0, over(x.lost, (weight != 0).double()) > 0
        error = over(x.error, weight**2) + m.in_channels * size**2
        return Expected(_activated(exact, m.activation), error, loose, lost)

    def averages(self, m: nn.AvgPool2d, x: Expected) -> Expected:
        conv = DenseConv2d(
            len(x.exact[0]), len(x.exact[0]), m.kernel_size, m.stride, m.padding, groups=len(x.exact[0]), bias=False
        )
        conv.weight.data.fill_(1 / conv.weight[0].numel())
        return self.conv(conv, x)

    def sum(self, m: Add, a: Expected, b: Expected) -> Expected:
        exact, error = _activated(a.exact + b.exact, m.activation), a.error + b.error
        size = a.exact.abs() + b.exact.abs()
        return Expected(exact, error + size**2, a.in_any_channel().loose | b.loose, a.lost | b.lost)

    def max_pool(self, m: nn.MaxPool2d, x: Expected) -> Expected:
        exact, error, loose, lost = (m(tensor.double()) for tensor in x)
        empty = exact == -torch.inf  # windows of padding alone
        return Expected(exact.masked_fill(empty, 0), error.masked_fill(empty, 0), empty | (loose > 0), lost > 0)

    def average(self, x: Expected) -> Expected:
        over: Pair = 2, 3
        exact, size = x.exact.mean(over, keepdim=True), x.exact.abs().mean(over, keepdim=True)
        error = x.error.mean(over, keepdim=True) + x.exact[0, 0].numel() * size**2
        return Expected(exact, error, x.loose.amax(over, keepdim=True), x.lost.amax(over, keepdim=True))


def expected(body: fx.GraphModule, x: Tensor) -> Expected:
    """What a body must give for x."""
    loose = ~(x.abs() < LARGE)
    exact = torch.where(loose, 0.0, x.double())
    with torch.no_grad():
        return _Expecting(body).run(Expected(exact, torch.zeros_like(exact), loose, x.isnan()))
