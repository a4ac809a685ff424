"""ConvChain gives what its float32 layers give, but for rounding: on every instruction set, in any threads."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.nn.chain_bodies import by_reference, images, laid_out, running_on
from tests.nn.chain_recipes import DEPTHWISE, Layer, Recipe
from tests.nn.float_bodies import expected, make, recipes, spoil
from torchaccel import _native
from torchaccel.nn import ConvChain, _chain_builder, _chain_winograd
from torchaccel.nn.conv_chain import TOGETHER
from torchaccel.ops._chain_step import SLAB, Kind, Step

CASES = settings(max_examples=120, deadline=None, derandomize=True)
ISAS = _native.isas_available() or ("reference",)


@CASES
@given(
    recipe=recipes(), n=st.integers(1, 11), threads=st.integers(1, 3), late=st.sampled_from([0, 2000, 1 << 18]),
    layout=st.sampled_from(["nchw", "channels_last", "gaps"]), finite=st.booleans(),
)  # fmt: skip
def test_random_bodies(recipe: Recipe, n: int, threads: int, late: int, layout: str, finite: bool) -> None:
    body, x = make(recipe), images(recipe, n)
    x = x if finite else spoil(x, recipe.seed)
    small = mock.patch.multiple(_chain_winograd, LEAST_DEPTH=1, LEAST_CHANNELS=1)
    with mock.patch.object(_chain_builder, "LATE_BYTES", late), small, torch.no_grad():
        chain, wanted = ConvChain(body), expected(body, x)
        wanted.check(by_reference(chain, x[:1], min(-(-n // threads), TOGETHER[torch.float32])))
        for isa in ISAS:
            with running_on(isa, threads):
                y = chain(laid_out(x, layout))
            wanted.check(y)
            nhwc = layout == "channels_last" and not x.is_contiguous(memory_format=torch.channels_last)
            assert y.is_contiguous(memory_format=torch.channels_last if nhwc else torch.contiguous_format)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", [(3, 5, 40), (20, 33, 36), (17, 7, 7), (16, 1, 39), (5, 8, 1)])
@pytest.mark.parametrize("late", [0, 1 << 18])
def test_tensors_outside(isa: str, size: tuple[int, int, int], late: int) -> None:
    # Tiles of one to sixteen columns or channels, blocks that the image does not fill, several images in a vector.
    recipe = Recipe((Layer(channels=size[0], pattern="unstructured"),) * 2, size)
    body, x = make(recipe), images(recipe, 5)
    with mock.patch.object(_chain_builder, "LATE_BYTES", late), torch.no_grad(), running_on(isa, 1):
        chain, wanted = ConvChain(body), expected(body, x)
        for n in range(1, 6):
            y = chain(x[:n])
            wanted.check(y)
            assert torch.equal(chain(laid_out(x[:n], "channels_last")), y)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("size", "layer"),
    [
        ((4, 1, 16), Layer(channels=8, kernel=(1, 3), stride=(1, 2), padding=(0, 1), pattern="unstructured")),
        ((4, 2, 16), Layer(channels=8, kernel=(3, 3), stride=(2, 2), padding=(1, 1), pattern="unstructured")),
        ((4, 1, 18), Layer(channels=8, kernel=(1, 3), pattern="unstructured")),
        ((4, 2, 33), Layer(channels=8, kernel=(2, 2), stride=(2, 2), pattern="unstructured")),
        ((16, 8, 20), Layer(channels=8, pattern="unstructured")),
    ],
)
def test_images_of_few_rows(isa: str, size: tuple[int, int, int], layer: Layer) -> None:
    recipe = Recipe((layer,), size)
    body, x = make(recipe), images(recipe, 3)
    with torch.no_grad(), running_on(isa, 1):
        expected(body, x).check(ConvChain(body)(x))


# A residual network's parts in one, larger than the random bodies: several tiles, every kind of step.
NET = (
    Layer(channels=24, kernel=(7, 7), stride=(2, 2), padding=(3, 3), pattern="unstructured"),
    Layer(pool=True, kernel=(3, 3), stride=(2, 2), padding=(1, 1)),
    Layer(channels=16, pattern="1x4"),
    Layer(channels=20, kernel=(3, 3), padding=(1, 1), pattern="4x4"),
    Layer(back=0, residual=True, pattern="unstructured", density=0.2),
    Layer(channels=16, groups=DEPTHWISE, kernel=(3, 3), padding=(1, 1), pattern="dense", density=0.9),
    Layer(channels=32, groups=4, kernel=(3, 3), padding=(1, 1), pattern="dense", density=0.8),
    Layer(channels=32, kernel=(3, 3), stride=(2, 2), padding=(1, 1), pattern="16x1"),
    Layer(channels=32, back=1, stride=(2, 2), activation="none", bias=False, pattern="dense"),
    Layer(kernel=(3, 3), padding=(2, 2), dilation=(2, 2), back=1, residual=True, activation="relu6", pattern="2:4"),
    Layer(channels=SLAB + 34, pattern="unstructured"),
)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("average", [None, torch.float32])
def test_a_residual_network(isa: str, average: torch.dtype | None) -> None:
    recipe = Recipe(NET, (3, 61, 75), average=average)
    body = make(recipe)
    x = images(recipe, 7)
    chain, wanted = ConvChain(body), expected(body, x)
    with torch.no_grad():
        wanted.check(body(x))
    for n, threads in ((1, 1), (1, 2), (1, 3), (2, 2), (5, 2), (7, 3)):
        with running_on(isa, threads), torch.no_grad():
            wanted.check(chain(x[:n]))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("pattern", ["unstructured", "1x4", "16x1", "dense"])
def test_layers_whose_weights_do_not_fit_the_cache(isa: str, pattern: str) -> None:
    # The wide one comes late, several images at a time; its channels make two slabs and several chunks.
    wide = Layer(channels=SLAB + 16, kernel=(3, 3), padding=(1, 1), pattern=pattern, density=0.3)
    first, last = Layer(channels=SLAB + 16, pattern=pattern), Layer(pattern="unstructured")
    recipe = Recipe((first, wide, last), (8, 9, 13))
    body = make(recipe)
    x = images(recipe, 10)
    chain, wanted = ConvChain(body), expected(body, x)
    plan = chain.plan(x, 2)
    assert plan is not None and 0 < plan.late_steps < len(plan.steps), "the wide layer comes late"
    for n, threads in ((1, 1), (1, 2), (3, 1), (10, 1), (5, 2), (7, 3)):
        with running_on(isa, threads), torch.no_grad():
            wanted.check(chain(x[:n]))


@pytest.mark.parametrize("stride", [1, 2])
def test_several_layers_read_the_tensor_outside(stride: int) -> None:
    first = Layer(kernel=(3, 3), stride=(stride, stride), padding=(1, 1), pattern="unstructured")
    shortcut = Layer(back=9, stride=(stride, stride), residual=True, pattern="unstructured")
    recipe = Recipe((first, shortcut), (12, 15, 22))
    body, x = make(recipe), images(recipe, 3)
    assert len(next(iter(body.graph.nodes)).users) == 2
    chain, wanted = ConvChain(body), expected(body, x)
    for isa in ISAS:
        with running_on(isa, 2), torch.no_grad():
            wanted.check(chain(x))
    wanted.check(by_reference(chain, x))


@pytest.mark.parametrize(
    ("size", "grid"), [((12, 20), (1, 16, 15, 1)), ((7, 9), (1, 16, 1, 4)), ((1, 5), (1, 16, 1, 1))]
)
@pytest.mark.parametrize("average", [None, torch.float32])
def test_layers_of_one_pixel_take_vectors_of_neighbours(
    size: tuple[int, int], grid: tuple[int, ...], average: torch.dtype | None
) -> None:
    wide, adding = Layer(channels=20, pattern="unstructured"), Layer(back=1, residual=True, pattern="16x1")
    recipe = Recipe((wide, adding, Layer(pattern="dense")), (8, *size), average=average)
    body, x = make(recipe), images(recipe, 5)
    chain, wanted = ConvChain(body), expected(body, x)
    for threads, layout in ((1, "nchw"), (2, "channels_last"), (3, "gaps")):
        with running_on(ISAS[0], threads), torch.no_grad():
            wanted.check(chain(laid_out(x, layout)))
    apart, *_ = (plan for (_, _, lanes), plan in chain._plans.items() if lanes == 1 and plan is not None)
    steps = [Step(*ints) for ints in apart.steps.tolist()]
    grids = {(s.y_grid_h, s.y_grid_w, s.y_block_h, s.y_block_w) for s in steps if s.kind == Kind.CONV}
    assert grids == {grid} and not any(s.kind in (Kind.HALO, Kind.RELANE) for s in steps)


@pytest.mark.parametrize(("size", "together"), [((7, 7), True), ((14, 14), True), ((28, 28), False)])
def test_small_images_share_vectors(size: tuple[int, int], together: bool) -> None:
    recipe = Recipe((Layer(kernel=(3, 3), padding=(1, 1), pattern="unstructured"),) * 3, (8, *size))
    body, x = make(recipe), images(recipe, 4)
    chain = ConvChain(body)
    for lanes in (1, 4):
        plan = chain.plan(x, lanes)
        assert plan is not None and (plan.late_steps < len(plan.steps)) == (together and lanes > 1)
    with running_on(ISAS[0], 1), torch.no_grad():
        expected(body, x).check(chain(x))


def test_a_layer_that_adds_what_it_reads() -> None:
    # Once what a step before made, once with a window that reads over the edges.
    for kernel in (1, 3):
        second = Layer(kernel=(kernel, kernel), padding=(kernel // 2, kernel // 2), pattern="unstructured")
        recipe = Recipe((Layer(pattern="unstructured"), second))
        body, x = make(recipe), images(recipe, 2)
        adding = next(node for node in body.graph.nodes if node.target == "layer1")
        adding.args = adding.args * 2
        body.recompile()
        with torch.no_grad():
            expected(body, x).check(ConvChain(body)(x))


def test_a_layer_whose_weights_are_all_zero() -> None:
    zero = Layer(channels=8, kernel=(3, 3), padding=(1, 1), pattern="unstructured", density=0.0)
    last = Layer(kernel=(3, 3), pattern="unstructured")
    recipe = Recipe((Layer(pattern="unstructured"), zero, Layer(pool=True, kernel=(3, 3), padding=(1, 1)), last))
    body, x = make(recipe), images(recipe, 3)
    chain, wanted = ConvChain(body), expected(body, x)
    with torch.no_grad():
        wanted.check(by_reference(chain, x))
        wanted.check(chain(x))


@pytest.mark.parametrize("isa", ISAS)
def test_what_is_not_a_number_stays_so(isa: str) -> None:
    # Through every activation, through max-pooling and the average; but not into other images or channels' windows.
    for activation in ("none", "relu", "relu6"):
        layer = Layer(kernel=(3, 3), padding=(1, 1), pattern="unstructured", density=1.0, activation=activation)
        pool = Layer(pool=True, kernel=(2, 2), stride=(2, 2))
        for average in (None, torch.float32):
            recipe = Recipe((layer, pool, layer), (3, 20, 21), average=average)
            body, x = make(recipe), images(recipe, 4)
            x[1, 2, 3, 4] = x[2, 0, 19, 20] = float("nan")
            with running_on(isa, 1), torch.no_grad():
                y = ConvChain(body)(x)
            wanted = expected(body, x)
            wanted.check(y)
            assert torch.equal(y.isnan(), wanted.lost) and torch.equal(wanted.lost, wanted.loose)
