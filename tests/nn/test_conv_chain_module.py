"""ConvChain as a module: its memory, its copies, what it leaves to its layers, autograd and torch.compile."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn

from tests.nn import float_bodies
from tests.nn.chain_bodies import Layer, Recipe, images, make, running_on
from torchaccel import _native
from torchaccel.nn import ConvChain, Int8MaxPool2d, SparseConv2d, _chain_plan
from torchaccel.nn.conv_chain import takes
from torchaccel.nn.dense import DenseConv2d

BLOCK = (
    Layer(channels=16, pattern="1x4"),
    Layer(channels=12, kernel=(3, 3), padding=(1, 1), stride=(2, 2)),
    Layer(channels=16, back=1, stride=(2, 2), activation="none", dtype=torch.int8),
    Layer(channels=16, back=1, residual=True),
)
FLOATS = Recipe(BLOCK, average=torch.float32)
SPARSE = Recipe(tuple(replace(layer, pattern="unstructured") for layer in BLOCK), average=torch.float32)


@pytest.fixture(params=["int8", "float32"])
def body(request: pytest.FixtureRequest) -> fx.GraphModule:
    """Layers that read the images of `FLOATS`."""
    return make(FLOATS) if request.param == "int8" else float_bodies.make(SPARSE)


def close(chain: ConvChain, y: Tensor, expected: Tensor) -> None:
    """What a chain gave is what its layers give: in int8 to the bit."""
    exact = not any(isinstance(module, SparseConv2d) for module in chain.body.modules())
    torch.testing.assert_close(y, expected, rtol=0 if exact else 1e-4, atol=0 if exact else 1e-5)


def same(chain: ConvChain, x: Tensor) -> None:
    with torch.no_grad():
        close(chain, chain(x), chain.body(x))


def test_memory_is_kept_from_call_to_call_and_grows_with_the_batch(body: fx.GraphModule) -> None:
    chain = ConvChain(body)
    with running_on(_native.isa() or "", 2):
        same(chain, images(FLOATS, 1))
        plan = chain.plan(images(FLOATS, 1), 1)
        assert plan is not None
        first = plan.arena
        same(chain, images(FLOATS, 1))
        assert plan.arena is first and chain.plan(images(FLOATS, 3), 1) is plan
        same(chain, images(FLOATS, 3))
        assert plan.arena.numel() > first.numel()
        larger = plan.arena
        for n in (3, 1, 2):
            same(chain, images(FLOATS, n))
        assert plan.arena is larger
        same(chain, images(FLOATS, 8))
        together = chain.plan(images(FLOATS, 8), 4)
        assert together is not None and together.arena.numel() > together.arena_bytes
        assert together.values is plan.values, "the weights are kept once"
        assert not _native.isa() or int(plan.arena.any()), "the kernel works in this memory"


@pytest.mark.parametrize("n", [1, 2, 5])
def test_two_python_threads_call_one_chain(body: fx.GraphModule, n: int) -> None:
    chain = ConvChain(body)
    xs = [images(FLOATS, n) + i for i in range(8)]
    with torch.no_grad():
        expected = [chain.body(x) for x in xs]

    def call(i: int) -> None:
        with torch.no_grad():
            for j in range(i, i + 40):
                close(chain, chain(xs[j % 8]), expected[j % 8])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(call, range(8)))


def test_plans_of_the_last_sizes_are_kept(body: fx.GraphModule) -> None:
    chain = ConvChain(body)
    for width in (*range(5, 15), 5):
        for _ in range(2):
            same(chain, torch.randn(1, 8, 9, width))
    assert [size[2] for size, *_ in chain._plans] == [*range(8, 15), 5]


def test_copies_hold_no_plans_and_give_the_same(body: fx.GraphModule) -> None:
    chain, x = ConvChain(body), images(FLOATS, 3)
    with torch.no_grad():
        y = chain(x)
        for copied in (copy.deepcopy(chain), pickle.loads(pickle.dumps(chain))):
            assert not copied._plans and copied.body is not chain.body
            assert torch.equal(copied(x), y)
    chain.to(torch.device("cpu"))
    assert not chain._plans, "weights may have moved"


@pytest.mark.parametrize(
    ("recipe", "x"),
    [
        (FLOATS, torch.randn(2, 8, 9, 10).half()),
        (FLOATS, torch.randn(2, 8, 9, 10).bfloat16()),
        (FLOATS, torch.randn(0, 8, 9, 10)),
        (Recipe(BLOCK, (6, 5, 5), torch.uint8), torch.randint(0, 256, (2, 6, 5, 5), dtype=torch.uint8)),
    ],
)
def test_what_has_no_plan_runs_layer_by_layer(recipe: Recipe, x: Tensor) -> None:
    chain = ConvChain(make(recipe))
    same(chain, x)
    assert not chain._plans


def test_float_layers_take_an_empty_batch() -> None:
    chain = ConvChain(float_bodies.make(SPARSE))
    same(chain, torch.randn(0, 8, 9, 10))
    assert not chain._plans


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_float_layers_take_any_layout_and_give_it_back(layout: torch.memory_format) -> None:
    recipe = replace(SPARSE, average=None)
    chain, x = ConvChain(float_bodies.make(recipe)), images(recipe, 3)
    y = chain(x.to(memory_format=layout))
    assert y.is_contiguous(memory_format=layout) and torch.equal(y, chain(x))
    same(chain, x)


def test_sums_that_no_int32_holds_run_layer_by_layer() -> None:
    body, x = make(FLOATS), images(FLOATS, 2)
    chain = ConvChain(body)
    body.get_submodule("layer1").bias[3] = 3e30  # type: ignore[index]
    with pytest.raises(_chain_plan.UnplannableError, match="too far"):
        _chain_plan.build(body, (8, 9, 10), torch.float32, 1, {})
    same(chain, x)
    assert list(chain._plans.values()) == [None]


@pytest.mark.parametrize(
    ("recipe", "x", "says"),
    [
        (FLOATS, torch.randn(2, 12, 9, 10), r"\(2, 12, 9, 10\), accepted is \[N, 8, H, W\]"),
        (FLOATS, torch.randn(2, 3, 9, 10), r"\(2, 3, 9, 10\), accepted is \[N, 8, H, W\]"),
        (FLOATS, torch.randn(8, 9, 10), r"\(8, 9, 10\), accepted is"),
        (FLOATS, torch.randn(1, 8, 9, 10).double(), "torch.float64"),
        (Recipe(BLOCK, (8, 5, 5), torch.uint8), torch.zeros(1, 8, 5, 5, dtype=torch.int8), "x is torch.int8"),
        (Recipe((Layer(kernel=(3, 3)),) * 2), torch.randn(1, 8, 4, 9), "does not fit an input of"),
        (Recipe((Layer(), Layer(pool=True, kernel=(3, 3)))), torch.randn(1, 8, 2, 9), "does not fit"),
    ],
)
def test_bad_input_is_refused_as_by_the_layers(recipe: Recipe, x: Tensor, says: str) -> None:
    chain = ConvChain(make(recipe))
    for call in (chain.body.forward, chain):
        with pytest.raises(ValueError, match=says):
            call(x)


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(2, 12, 9, 10), torch.randn(8, 9, 10), torch.randn(2, 8, 9, 10).half(),
        torch.randn(2, 8, 9, 10).double(), torch.zeros(2, 8, 9, 10, dtype=torch.uint8),
    ],
)  # fmt: skip
def test_bad_input_is_refused_as_by_float_layers(x: Tensor) -> None:
    chain = ConvChain(float_bodies.make(SPARSE))
    for call in (chain.body.forward, chain):
        with pytest.raises(ValueError, match="accepted"):
            call(x)


def test_layers_that_were_not_connected_have_no_plan() -> None:
    for role in ("input", "residual"):
        body = make(FLOATS)
        layer = body.get_submodule("layer3")
        getattr(layer, f"{role}_zero_point").add_(1)
        with pytest.raises(_chain_plan.UnplannableError, match="range"):
            _chain_plan.build(body, (8, 9, 10), torch.float32, 1, {})
        same(ConvChain(body), images(FLOATS, 2))


def test_a_backward_pass_says_that_there_is_none(body: fx.GraphModule) -> None:
    chain, x = ConvChain(body), images(FLOATS, 2).requires_grad_()
    y = chain(x)
    with torch.no_grad():
        assert torch.equal(y, chain(x))
    with pytest.raises(RuntimeError, match="inference-only"):
        y.sum().backward()


def test_trainable_weights_are_not_passed_by_in_silence() -> None:
    chain = ConvChain(float_bodies.make(Recipe((Layer(channels=8, pattern="dense"),) * 2, (4, 6, 6))))
    y = chain(torch.randn(2, 4, 6, 6))
    assert y.requires_grad
    with pytest.raises(RuntimeError, match="inference-only"):
        y.sum().backward()


def test_loaded_weights_are_those_that_count() -> None:
    body = float_bodies.make(Recipe((Layer(channels=8, pattern="dense"), Layer(channels=8, pattern="1x4")), (4, 6, 6)))
    chain, x = ConvChain(body), torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        before = chain(x)
        chain.load_state_dict({n: t * 2 if t.is_floating_point() else t for n, t in chain.state_dict().items()})
        after = chain(x)
        assert not torch.equal(after, before)
        torch.testing.assert_close(after, body(x), rtol=1e-4, atol=1e-4)


def test_memory_made_in_inference_mode_serves_outside_of_it(body: fx.GraphModule) -> None:
    chain, x = ConvChain(body), images(FLOATS, 2)
    with torch.inference_mode():
        expected = chain(x)
    assert torch.equal(chain(x), expected)
    assert torch.equal(chain(x.requires_grad_()), expected)


def test_it_compiles(body: fx.GraphModule) -> None:
    model = nn.Sequential(ConvChain(body), nn.Flatten(), nn.Linear(16, 3)).eval()
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        for n in (2, 5):
            x = images(FLOATS, n)
            torch.testing.assert_close(compiled(x), model(x))


def test_which_layers_a_chain_takes() -> None:
    conv = make(FLOATS).get_submodule("layer1")
    assert takes(conv) and takes(Int8MaxPool2d(2)) and not takes(Int8MaxPool2d(2, ceil_mode=True))
    conv.set_float()  # type: ignore[operator]
    assert not takes(conv) and takes(conv, connected=False)
    conv.input = "dynamic"  # type: ignore[assignment]
    assert not takes(conv, connected=False)


def test_which_float_layers_a_chain_takes() -> None:
    conv = float_bodies.make(SPARSE).get_submodule("layer2")
    assert takes(conv) and not takes(nn.Conv2d(8, 8, 1)) and not takes(conv.half())


def test_which_dense_layers_a_chain_takes() -> None:
    assert takes(DenseConv2d(3, 8, 7, stride=2, padding=3, activation="relu")) and takes(DenseConv2d(64, 8, 1))
    assert takes(DenseConv2d(9, 9, 3, groups=9)) and takes(DenseConv2d(6, 9, 3, groups=3))
    for settings in ({"padding": "same"}, {"padding_mode": "reflect", "padding": 1}):
        assert not takes(DenseConv2d(3, 9, 3, **settings))
    assert not takes(DenseConv2d(3, 8, 1).half()) and takes(DenseConv2d(3, 8, 1, activation="gelu"))


def test_which_pooling_layers_a_chain_takes() -> None:
    assert takes(nn.MaxPool2d(3, 2, 1)) and takes(nn.MaxPool2d((2, 3), padding=(1, 1)))
    assert not takes(nn.MaxPool2d(2, ceil_mode=True)) and not takes(nn.MaxPool2d(2, return_indices=True))
    assert not takes(nn.MaxPool2d((1, 3), padding=1, dilation=2))
    assert takes(nn.AdaptiveAvgPool2d(1)) and takes(nn.AdaptiveAvgPool2d((1, 1)))
    assert takes(nn.AvgPool2d(3, 1, 1)) and takes(nn.AvgPool2d(2, count_include_pad=False))
    assert not takes(nn.AvgPool2d(3, padding=1, count_include_pad=False)) and not takes(nn.AvgPool2d(2, ceil_mode=True))
    assert not takes(nn.AvgPool2d(2, divisor_override=3))
    assert not takes(nn.AdaptiveAvgPool2d(2)) and not takes(nn.AdaptiveAvgPool2d((None, 1)))


def test_its_words() -> None:
    chain = ConvChain(make(FLOATS))
    assert "layers=5" in repr(chain)
    assert "cuda" in str(chain.unsupported(torch.device("cuda")))
    assert (chain.unsupported(torch.device("cpu")) is None) == (_native.isa() is not None)
