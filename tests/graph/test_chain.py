"""Chains: which layers form one, that none changes a bit, that it is undone, and that measurements choose it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from tests.graph.test_pools import IMAGES, all_int8, tiny_resnet
from tests.models import SmallMobileNet, SmallNet, settled
from tests.nn.chain_bodies import Layer, Recipe, images, make
from torchaccel import measure
from torchaccel.demo.resnet import BasicBlock, Bottleneck
from torchaccel.graph.chain import chain, chained, runs, unchain
from torchaccel.graph.choose import Choice
from torchaccel.graph.choose_chains import choose_chains
from torchaccel.graph.connect import assemble
from torchaccel.graph.prepare import prepare
from torchaccel.graph.trace import fingerprint, trace
from torchaccel.nn import ConvChain, Int8AdaptiveAvgPool2d, Int8Conv2d

THREE = Recipe((Layer(kernel=(3, 3)), Layer(), Layer(kernel=(3, 3))))
ADDING = Recipe((Layer(), Layer(kernel=(3, 3), padding=(1, 1)), Layer(residual=True), Layer()))


class ToFloat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float()


def found(graph: fx.GraphModule, names: list[str] | None = None) -> list[list[str]]:
    return [[str(node.target).replace("layer", "") for node in run] for run in runs(graph, names)]


def chains(model: nn.Module) -> list[ConvChain]:
    return [module for module in model.modules() if isinstance(module, ConvChain)]


def node(graph: fx.GraphModule, name: str) -> fx.Node:
    return next(node for node in graph.graph.nodes if name in (node.target, node.name))


def test_all_layers_from_one_input_to_one_output_are_one_run() -> None:
    assert found(make(THREE)) == [["0", "1", "2"]]
    assert found(make(ADDING)) == [["0", "1", "2", "3"]]
    pools = Recipe((Layer(), Layer(pool=True, kernel=(2, 2)), Layer()), quantize=True, average=torch.float32)
    assert found(make(pools)) == [["0", "1", "2", "3", "4"]]


def test_a_residual_from_outside_stays_outside() -> None:
    graph = make(ADDING)
    last = node(graph, "layer2")
    last.args = last.args[0], node(graph, "x")
    assert found(graph) == [["0", "1"]]


def test_an_average_ends_a_run() -> None:
    graph = make(Recipe((Layer(), Layer(), Layer(), Layer(), Layer()), average=torch.uint8))
    average = node(graph, "layer5")
    graph.layer6 = graph.layer3
    with graph.graph.inserting_after(average):
        behind = graph.graph.call_module("layer6", (average,))
    with graph.graph.inserting_after(behind):
        later = graph.graph.call_module("layer4", (behind,))
    average.replace_all_uses_with(later, lambda user: user is not behind)
    assert found(graph) == [["0", "1", "2", "3", "4", "5"], ["6", "4"]]


def test_a_value_that_is_read_outside_ends_a_run() -> None:
    graph = make(Recipe((Layer(),) * 6))
    output = node(graph, "output")
    output.args = ((node(graph, "layer2"), node(graph, "layer5")),)
    assert found(graph) == [["0", "1", "2"], ["3", "4", "5"]]
    output.args = ((node(graph, "layer0"), node(graph, "layer1"), node(graph, "layer5")),)
    assert found(graph) == [["2", "3", "4", "5"]]


def test_hooks_names_and_keywords_keep_a_layer_out() -> None:
    graph = make(Recipe((Layer(),) * 5))
    names = [f"layer{i}" for i in range(5)]
    assert found(graph, names) == [["0", "1", "2", "3", "4"]] and found(graph, []) == []
    assert found(graph, names[1:]) == [["1", "2", "3", "4"]]
    assert found(graph, [names[0], names[2], names[3]]) == [["2", "3"]]
    handle = graph.layer1.register_forward_hook(lambda module, args, y: None)
    assert found(graph) == [["2", "3", "4"]]
    handle.remove()
    third = node(graph, "layer3")
    third.args, third.kwargs = (), {"input": third.args[0]}
    assert found(graph) == [["0", "1", "2"]]


def test_a_layer_that_gives_floats_or_one_alone_is_no_run() -> None:
    graph = make(Recipe((Layer(),) * 4))
    graph.layer1.set_float()
    assert found(graph) == [["2", "3"]]
    assert found(make(Recipe((Layer(),)))) == []
    assert found(make(Recipe((Layer(), Layer(pool=True, kernel=(2, 2)))))) == []


def test_a_quantization_is_part_of_the_run_that_alone_reads_it() -> None:
    graph = make(Recipe((Layer(), Layer()), quantize=True))
    assert found(graph) == [["0", "1", "2"]]
    output = node(graph, "output")
    output.args = ((node(graph, "layer0"), node(graph, "layer2")),)
    assert found(graph) == [["1", "2"]]


@pytest.mark.parametrize("recipe", [THREE, ADDING, Recipe(ADDING.layers, quantize=True, average=torch.float32)])
def test_chaining_changes_no_bit_and_is_undone(recipe: Recipe) -> None:
    graph, x = make(recipe), images(recipe, 3)
    before, layers, expected = fingerprint(graph), dict(graph.named_modules()), graph(x)
    chain(graph)
    assert len(chains(graph)) == 1 and len(list(graph.graph.nodes)) == 3
    assert torch.equal(graph(x), expected)
    assert chained(graph) == [name for name in layers if name]
    unchain(graph)
    assert fingerprint(graph) == before and not chains(graph)
    assert torch.equal(graph(x), expected)
    after = dict(graph.named_modules())
    assert after.keys() == layers.keys() and all(after[name] is module for name, module in layers.items() if name)


def test_two_runs_in_a_graph_of_graphs() -> None:
    model = nn.Sequential(make(THREE), ToFloat(), make(ADDING)).eval()
    x = images(THREE, 2)
    expected, graph = model(x), trace(model)
    assert [len(run) for run in runs(graph)] == [3, 4]
    chain(graph)
    assert len(chains(graph)) == 2 and torch.equal(graph(x), expected)
    assert chained(graph) == [f"0.layer{i}" for i in range(3)] + [f"2.layer{i}" for i in range(4)]
    unchain(graph)
    assert chained(graph) == [] and torch.equal(graph(x), expected)


def test_chains_inside_of_a_larger_model_are_undone_by_their_full_names() -> None:
    inner = make(THREE)
    x, expected = images(THREE, 2), inner(images(THREE, 2))
    chain(inner)
    graph = trace(nn.Sequential(nn.Identity(), nn.Sequential(inner)).eval())
    assert chained(graph) == [f"1.0.layer{i}" for i in range(3)]
    unchain(graph)
    assert torch.equal(graph(x), expected)
    assert [str(node.target) for node in graph.graph.nodes if node.op == "call_module"] == [
        "0", "1.0.layer0", "1.0.layer1", "1.0.layer2",
    ]  # fmt: skip


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_a_resnet_is_one_chain_from_stem_to_average(block: type[BasicBlock | Bottleneck]) -> None:
    x = torch.randn(IMAGES)
    prepared, chosen = all_int8(tiny_resnet(block), x)
    apart, fast = assemble(prepared.dense, chosen), assemble(prepared.dense, chosen, chosen.keys())
    assert not chains(apart)
    (made,) = chains(fast)
    assert isinstance(made.body.avgpool, Int8AdaptiveAvgPool2d)
    assert set(chained(fast)) == chosen.keys() - {"fc"}
    with torch.no_grad():
        for batch in (x, x[:1], torch.randn(3, 3, 40, 48)):
            assert torch.equal(fast(batch), apart(batch))
    assert not chains(assemble(prepared.dense, chosen, {"conv1"})), "a chain has two convolutions"
    assert not chains(prepared.dense)


def test_a_mobilenet_is_one_chain_though_its_depthwise_layers_lose_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(IMAGES)
    prepared, forms = all_int8(settled(SmallMobileNet(), IMAGES), x)
    timed(monkeypatch, 2.0)
    alternatives = {name: [form] for name, form in forms.items()}
    chosen, _, names = choose_chains(prepared.dense, alternatives, {}, choices_of(prepared, forms), (x,))
    assert chosen.keys() == names == forms.keys() - {"head"}
    apart, fast = assemble(prepared.dense, chosen), assemble(prepared.dense, chosen, names)
    assert len(chains(fast)) == 1 and set(chained(fast)) == names
    with torch.no_grad():
        for batch in (x, x[:1], torch.randn(3, 3, 40, 48)):
            assert torch.equal(fast(batch), apart(batch))


def test_a_chained_model_is_prepared_again() -> None:
    x = torch.randn(IMAGES)
    prepared, chosen = all_int8(tiny_resnet(BasicBlock), x)
    fast = assemble(prepared.dense, chosen, chosen.keys())
    again = prepare(fast, (x,))
    assert again.note is None and not chains(again.dense) and again.given.keys() == chosen.keys()
    assert chains(fast), "what was given stays"


def choices_of(prepared, chosen: dict[str, nn.Module]) -> list[Choice]:
    lost = {
        name: Choice(name, type(m).__name__, "", 0.0, "dense float", 1.0, 3.0, 3.0, "") for name, m in chosen.items()
    }
    return [Choice(**vars(choice) | {"reason": "kept dense: int8 is 0.50x"}) for choice in lost.values()]


def timed(monkeypatch: pytest.MonkeyPatch, *speedups: float) -> list[int]:
    """Comparisons give these speed-ups one after the other, the last one from then on; returns what counts them."""
    count: list[int] = []

    def compare(baseline, candidate, **_: object) -> measure.Comparison:
        baseline(), candidate()
        speedup = speedups[min(len(count), len(speedups) - 1)]
        count.append(1)
        return measure.Comparison(speedup, speedup, speedup, (speedup,), (1.0,))

    monkeypatch.setattr(measure, "compare", compare)
    return count


def test_a_chain_that_makes_the_model_faster_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = settled(SmallNet()), torch.randn(2, 3, 16, 16)
    prepared, forms = all_int8(model, x)
    count, ticks, run = timed(monkeypatch, 2.0), [], []
    choices = choices_of(prepared, forms)
    alternatives = {name: [form] for name, form in forms.items()}
    winners = {"stem.0": forms["stem.0"]}
    chosen, after, names = choose_chains(
        prepared.dense, alternatives, winners, choices, (x,), lambda m: (run.append(m), m)[1], lambda: ticks.append(1)
    )
    assert len(ticks) == 1 and len(count) == 2, "it is confirmed"
    assert [len(chains(model)) for model in run] == [0, 1], "what is timed is what would run"
    assert names == chosen.keys() == forms.keys() - {"head"}
    by_name = {choice.name: choice for choice in after}
    assert [choice.name for choice in after] == [choice.name for choice in choices]
    words = f"in a chain of {len(names)} layers, 2.00x the model without it; "
    assert by_name["stem.0"].reason == f"{words}kept dense: int8 is 0.50x", "as it was, for it had won by itself"
    assert by_name["block1.conv1"].reason == f"{words}alone int8 is 0.50x"
    assert by_name["block1.conv1"].chosen == "int8"
    assert by_name["head"] == next(choice for choice in choices if choice.name == "head")
    assert set(chained(assemble(prepared.dense, chosen, names))) == names


@pytest.mark.parametrize("speedups", [(0.9,), (1.0,), (2.0, 0.9)])
def test_a_chain_that_does_not_is_not(monkeypatch: pytest.MonkeyPatch, speedups: tuple[float, ...]) -> None:
    x = torch.randn(2, 3, 16, 16)
    prepared, forms = all_int8(settled(SmallNet()), x)
    timed(monkeypatch, *speedups)
    choices, winners = choices_of(prepared, forms), {"head": forms["head"]}
    alternatives = {name: [form] for name, form in forms.items()}
    assert choose_chains(prepared.dense, alternatives, winners, choices, (x,)) == (winners, choices, set())


def test_where_there_are_no_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, 2.0)
    x = torch.randn(2, 3, 16, 16)
    prepared, forms = all_int8(settled(SmallNet()), x)
    choices = choices_of(prepared, forms)
    alternatives = {name: [form] for name, form in forms.items()}
    assert choose_chains(settled(SmallNet()), alternatives, {}, choices, (x,)) == ({}, choices, set())
    assert choose_chains(prepared.dense, {}, {}, [], (x,)) == ({}, [], set())
    unbatched = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)).eval()
    made, ones = all_int8(unbatched, x)
    both = {name: [form] for name, form in ones.items()}
    assert choose_chains(made.dense, both, {}, choices_of(made, ones), (x[0],))[2] == set(), "layers refuse such images"
    assert choose_chains(made.dense, both, {}, choices_of(made, ones), (x,))[2] == {"0", "1"}
    few = {name: alternatives[name] for name in ("stem.0", "block1.conv2", "head")}
    theirs = [choice for choice in choices if choice.name in few]
    assert choose_chains(prepared.dense, few, {}, theirs, (x,))[2] == set(), "no two neighbours"
    assert all(isinstance(m, Int8Conv2d) for name, (m,) in few.items() if name != "head")
