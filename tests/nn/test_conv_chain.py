"""ConvChain gives what its layers give, to the bit: on every instruction set, in any number of threads."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.nn.chain_bodies import Layer, Recipe, by_reference, images, laid_out, make, recipes, running_on
from tests.nn.chain_recipes import DEPTHWISE
from torchaccel import _native
from torchaccel.nn import ConvChain, _chain_builder
from torchaccel.nn.conv_chain import TOGETHER
from torchaccel.ops._chain_step import Step

CASES = settings(max_examples=250, deadline=None, derandomize=True)
ISAS = _native.isas_available() or ("reference",)


def equal(y: Tensor, expected: Tensor) -> None:
    assert (y.dtype, y.shape) == (expected.dtype, expected.shape)
    assert y.stride() == torch.empty(y.shape, memory_format=torch.channels_last).stride()
    assert torch.equal(y, expected), f"{(y != expected).sum()} of {y.numel()} differ"


@CASES
@given(
    recipe=recipes(), n=st.integers(1, 19), threads=st.integers(1, 3), late=st.sampled_from([0, 500, 1 << 18]),
    layout=st.sampled_from(["nchw", "channels_last", "gaps"]), finite=st.booleans(),
)  # fmt: skip
def test_random_bodies(recipe: Recipe, n: int, threads: int, late: int, layout: str, finite: bool) -> None:
    body = make(recipe)
    x = images(recipe, n, finite)
    with mock.patch.object(_chain_builder, "LATE_BYTES", late), torch.no_grad():
        chain, expected = ConvChain(body), body(x)
        if not any(layer.curved for layer in recipe.layers):  # PyTorch's curves round otherwise
            equal(by_reference(chain, x[:1], min(-(-n // threads), TOGETHER[torch.int8])), expected[:1])
        for isa in ISAS:
            with running_on(isa, threads):
                equal(chain(laid_out(x, layout)), expected)


# A residual network's parts in one, larger than the random bodies: several tiles, every kind of step.
NET = (
    Layer(channels=24, kernel=(7, 7), stride=(2, 2), padding=(3, 3)),
    Layer(pool=True, kernel=(3, 3), stride=(2, 2), padding=(1, 1)),
    Layer(channels=16, pattern="1x4", dtype=torch.int8),
    Layer(channels=20, kernel=(3, 3), padding=(1, 1), pattern="4x4"),
    Layer(back=0, residual=True, channels=24),
    Layer(channels=16, groups=DEPTHWISE, kernel=(3, 3), padding=(1, 1), activation="relu6", density=0.9),
    Layer(channels=32, groups=4, kernel=(3, 3), padding=(1, 1), density=0.8),
    Layer(channels=32, kernel=(3, 3), stride=(2, 2), padding=(1, 1), pattern="1x4", dtype=torch.int8),
    Layer(channels=32, back=1, stride=(2, 2), activation="none", bias=False, dtype=torch.int8),
    Layer(kernel=(3, 3), padding=(2, 2), dilation=(2, 2), back=1, residual=True, activation="relu6", coarse=6),
    Layer(channels=30, pattern="unstructured"),
)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("average", [None, torch.float32, torch.int8])
def test_a_residual_network(isa: str, average: torch.dtype | None) -> None:
    recipe = Recipe(NET, (3, 61, 75), average=average)
    body = make(recipe)
    chain = ConvChain(body)
    for n, threads in ((1, 1), (1, 2), (1, 3), (2, 2), (5, 2), (7, 3)):
        x = images(recipe, n)
        with running_on(isa, threads), torch.no_grad():
            equal(chain(x), body(x))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("pattern", ["dense", "1x4", "4x4"])
def test_layers_whose_weights_do_not_fit_the_cache(isa: str, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Over 256 KB of kept weights, so that a part of the output channels at a time serves several images.
    wide = Layer(channels=192, kernel=(3, 3), padding=(1, 1), pattern=pattern, density=0.9)
    recipe = Recipe((Layer(channels=192), wide, wide, Layer(channels=8)), (8, 11, 16))
    body = make(recipe)
    chain = ConvChain(body)
    plan = chain.plan(images(recipe, 1), 2)
    assert plan is not None and 0 < plan.late_steps < len(plan.steps), "the wide layers come late"
    for n, threads in ((1, 1), (1, 2), (3, 1), (10, 1), (5, 2), (9, 3), (20, 2)):
        x = images(recipe, n)
        with running_on(isa, threads), torch.no_grad():
            equal(chain(x), body(x))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("columns", [1, 6, 45])
def test_depthwise_kernels_of_every_width(isa: str, width: int, columns: int) -> None:
    # Outputs of a row from one to more than a tile, two or four at once, of channels that fill no plane.
    kernels = (3, width), (1, width), (width, width)
    strides = (1, 1), (2, 1), (1, 2)
    depthwise = [
        Layer(
            channels=14, groups=DEPTHWISE, kernel=kernel, stride=stride, padding=(kernel[0] // 2, width // 2),
            dilation=(2, 1), dtype=torch.int8, coarse=6,
        )
        for kernel, stride in zip(kernels, strides, strict=True)
    ]  # fmt: skip
    recipe = Recipe((Layer(channels=14, activation="none", dtype=torch.int8), *depthwise), (3, 20, columns))
    body = make(recipe)
    with torch.no_grad():
        for n, threads in ((1, 1), (1, 3), (5, 2)):
            x = images(recipe, n)
            with running_on(isa, threads):
                equal(ConvChain(body)(x), body(x))


def test_which_depthwise_layers_have_quads() -> None:
    def quads(channels: int = 8, **settings: Any) -> bool:
        layer = Layer(channels=channels, **{"groups": DEPTHWISE, "kernel": (3, 3), "padding": (1, 1)} | settings)
        recipe = Recipe((Layer(), layer))
        plan = ConvChain(make(recipe)).plan(images(recipe, 1), 1)
        assert plan is not None
        (step,) = (s for s in (Step(*row) for row in plan.steps.tolist()) if s.block_rows == 4)
        return step.quads >= 0

    assert quads() and quads(stride=(2, 1)) and quads(dilation=(2, 1)) and quads(kernel=(1, 7), padding=(0, 3))
    assert not quads(stride=(1, 2)) and not quads(dilation=(1, 2)) and not quads(channels=16)
    assert not quads(kernel=(3, 8), padding=(1, 4)) and not quads(kernel=(3, 1)) and not quads(groups=4)


@pytest.mark.parametrize("ranges", [(0, 0), (0, 1), (1, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int8])
@pytest.mark.parametrize("stride", [1, 2])
def test_several_layers_read_the_tensor_outside(ranges: tuple[int, int], dtype: torch.dtype, stride: int) -> None:
    # With one range they share what is loaded, with two they do not.
    first = Layer(kernel=(3, 3), stride=(stride, stride), padding=(1, 1))
    shortcut = Layer(back=9, stride=(stride, stride), residual=True)
    recipe = Recipe((first, shortcut), (12, 15, 22), dtype, ranges=ranges)
    body, x = make(recipe), images(recipe, 3)
    assert len(next(iter(body.graph.nodes)).users) == 2
    chain = ConvChain(body)
    loads = chain.plan(x, 1).steps[:, 0].tolist().count(0)  # type: ignore[union-attr]
    assert loads == len(set(ranges))
    for isa in ISAS:
        with running_on(isa, 2), torch.no_grad():
            equal(chain(x), body(x))
            equal(by_reference(chain, x), body(x))


def test_a_layer_that_adds_what_it_reads() -> None:
    # A stride that pads so much that the output is as large as the input; the quantized tensor is read twice by it.
    recipe = Recipe((Layer(stride=(2, 2), padding=(1, 1)), Layer()), (8, 3, 3), quantize=True)
    body, x = make(recipe), images(recipe, 2)
    first = next(node for node in body.graph.nodes if node.target == "layer1")
    made, read = body.get_submodule("layer1"), body.get_submodule("layer0").input_range
    made.set_residual(read.scale, read.zero_point, read.dtype)  # type: ignore[union-attr, operator]
    first.args = first.args * 2
    body.recompile()
    with torch.no_grad():
        equal(ConvChain(body)(x), body(x))


def test_a_layer_whose_weights_are_all_zero() -> None:
    # It has no offsets, so that the next layer's begin where its own would.
    zero = Layer(channels=8, kernel=(3, 3), padding=(1, 1), pattern="1x4", density=0.0)
    recipe = Recipe((Layer(), zero, Layer(pool=True, kernel=(3, 3), padding=(1, 1)), Layer(kernel=(3, 3))))
    body, x = make(recipe), images(recipe, 3)
    chain = ConvChain(body)
    with torch.no_grad():
        equal(by_reference(chain, x), body(x))
        equal(chain(x), body(x))


@pytest.mark.parametrize("activation", ["gelu", "silu"])
@pytest.mark.parametrize("groups", [1, DEPTHWISE])
def test_the_reference_of_curves_is_a_step_off_at_most(activation: str, groups: int) -> None:
    layers = (Layer(channels=8, groups=groups, kernel=(3, 3), padding=(1, 1), activation=activation, coarse=6),)
    recipe = Recipe(layers, (8, 9, 10))
    body, x = make(recipe), images(recipe, 2)
    chain = ConvChain(body)
    with torch.no_grad():
        expected = body(x[:1])
        assert expected.unique().numel() > 20
        assert (by_reference(chain, x[:1]).int() - expected.int()).abs().max() <= 1
        equal(chain(x), body(x))
        assert None not in chain._plans.values()
