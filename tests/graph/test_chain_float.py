"""Chains of float layers: which layers form one, beside int8 ones, and that measurements choose it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from tests.graph.test_chain import ToFloat, chains, choices_of, found, node, timed
from tests.graph.test_layouts import all_sparse
from tests.graph.test_pools import IMAGES, near, tiny_resnet
from tests.models import SmallMobileNet, SmallNet, settled
from tests.nn.chain_bodies import Layer, Recipe, make
from torchaccel.demo.resnet import BasicBlock, Bottleneck
from torchaccel.graph.chain import chain, chained, single, unchain
from torchaccel.graph.choose_chains import choose_chains
from torchaccel.graph.connect import assemble
from torchaccel.graph.prepare import prepare
from torchaccel.graph.trace import fingerprint, trace
from torchaccel.nn import ConvChain, SparseConv2d
from torchaccel.nn.dense import DenseConv2d


def dense(i: int = 8, o: int = 8, kernel: int = 3, **settings: Any) -> DenseConv2d:
    made = DenseConv2d.from_float(nn.Conv2d(i, o, kernel, padding=kernel // 2, **settings))
    made.fuse_activation("relu")
    return made


def sparse(i: int = 8, o: int = 8, kernel: int = 3, **settings: Any) -> SparseConv2d:
    conv = nn.Conv2d(i, o, kernel, padding=kernel // 2, **settings)
    with torch.no_grad():
        conv.weight *= torch.rand(conv.weight.shape) < 0.5
    made = SparseConv2d.from_float(conv, "unstructured")
    made.fuse_activation("relu")
    return made


class Added(nn.Module):
    """A layer whose residual is what the first one reads."""

    def __init__(self) -> None:
        super().__init__()
        self.layer0, self.layer1, self.layer2 = sparse(), sparse(), sparse()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer2(self.layer1(self.layer0(x), x))


def graph_of(*modules: nn.Module) -> fx.GraphModule:
    """The modules one after the other, as layer0, layer1 and so on."""
    return trace(nn.Sequential(*modules).eval())


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("stem", ["sparse stem", "dense stem"])
def test_a_pruned_resnet_is_one_chain_from_stem_to_average(block: type[BasicBlock | Bottleneck], stem: str) -> None:
    x = torch.randn(IMAGES)
    prepared, chosen = all_sparse(tiny_resnet(block), x)
    held = chosen.keys() | {"maxpool", "avgpool"}
    names = set(chosen)
    if stem == "dense stem":  # as `sparsify_` leaves it
        del chosen["conv1"]
        held |= {"conv1", "contiguous_maxpool"}
    apart, fast = assemble(prepared.dense, chosen), assemble(prepared.dense, chosen, names)
    (made,) = chains(fast)
    assert isinstance(made.body.avgpool, nn.AdaptiveAvgPool2d) and not chains(apart)
    assert set(chained(fast)) == held
    with torch.no_grad():
        for batch in (x, x[:1], torch.randn(3, 3, 40, 48), x.to(memory_format=torch.channels_last)):
            near(fast(batch), apart(batch), 1e-5)


def test_chaining_is_undone() -> None:
    x = torch.randn(2, 3, 16, 16)
    prepared, chosen = all_sparse(settled(SmallNet()), x)
    graph = assemble(prepared.dense, chosen)
    assert isinstance(graph, fx.GraphModule)
    before, layers, expected = fingerprint(graph), dict(graph.named_modules()), graph(x)
    chain(graph)
    assert len(chains(graph)) == 1
    unchain(graph)
    assert fingerprint(graph) == before and torch.equal(graph(x), expected)
    assert all(module is layers[name] for name, module in graph.named_modules() if not list(module.children()))


def test_a_chained_model_is_prepared_again() -> None:
    x = torch.randn(2, 3, 16, 16)
    prepared, chosen = all_sparse(settled(SmallNet()), x)
    fast = assemble(prepared.dense, chosen, chosen.keys())
    again = prepare(fast, (x,))
    assert again.note is None and not chains(again.dense) and chains(fast)
    assert set(again.names) == chosen.keys() | {"head"}
    assert chained(assemble(again.dense, chosen, chosen.keys())) == chained(fast)


def test_a_residual_may_be_what_the_chain_reads() -> None:
    graph, x = trace(Added().eval()), torch.randn(2, 8, 7, 9)
    assert found(graph) == [["0", "1", "2"]]
    expected = graph(x)
    chain(graph)
    near(graph(x), expected, 1e-5)


def test_a_residual_from_elsewhere_stays_outside() -> None:
    graph = trace(Added().eval())
    with graph.graph.inserting_before(node(graph, "layer0")):
        read = graph.graph.call_function(torch.relu, (node(graph, "x"),))
    node(graph, "layer0").args = (read,)
    assert found(graph) == [["0"], ["2"]]


def test_float_and_int8_layers_share_no_chain() -> None:
    int8 = make(Recipe((Layer(), Layer(), Layer())))
    model = trace(
        nn.Sequential(int8, ToFloat(), sparse(), nn.MaxPool2d(2), sparse(), make(Recipe((Layer(),) * 2))).eval()
    )
    assert found(model) == [["0.0", "0.1", "0.2"], ["2", "3", "4"], ["5.0", "5.1"]]
    x = torch.randn(2, 8, 9, 10)
    expected = model(x)
    chain(model)
    assert len(chains(model)) == 3 and model(x).dtype == expected.dtype


def test_pooling_is_part_of_the_run_that_made_its_input() -> None:
    pool, average = nn.MaxPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(1)
    assert found(graph_of(nn.MaxPool2d(2), sparse(), sparse(), pool, average)) == [["1", "2", "3", "4"]]
    assert found(graph_of(sparse(), pool, average)) == [["0", "1", "2"]]
    assert found(graph_of(pool, average)) == [], "a chain has a convolution"
    assert found(graph_of(sparse(), sparse(), average, sparse(), sparse())) == [["0", "1", "2"], ["3", "4"]]
    other = nn.MaxPool2d(2, ceil_mode=True)
    assert found(graph_of(sparse(), sparse(), other, sparse(), nn.MaxPool2d(2, dilation=2), sparse())) == [
        ["0", "1"], ["3", "4", "5"],
    ]  # fmt: skip
    assert found(graph_of(sparse(), sparse(), nn.AdaptiveAvgPool2d((1, 2)))) == [["0", "1"]]
    assert found(graph_of(sparse(), sparse(), nn.AdaptiveAvgPool2d((1, 1)))) == [["0", "1", "2"]]


def test_a_pooling_layer_that_is_called_twice() -> None:
    pool = nn.MaxPool2d(2)
    graph, x = graph_of(sparse(), pool, sparse(), pool, sparse(), nn.Conv2d(8, 8, 1), pool), torch.randn(2, 8, 32, 32)
    expected = graph(x)
    chain(graph)
    assert len(chains(graph)) == 1
    near(graph(x), expected, 1e-5)
    unchain(graph)
    assert torch.equal(graph(x), expected)


def test_names_are_those_of_convolutions() -> None:
    graph = graph_of(sparse(), sparse(), nn.MaxPool2d(2), sparse(), sparse())
    assert found(graph, ["0", "1", "3"]) == [["0", "1", "2", "3"]]
    assert found(graph, ["3", "4"]) == [["3", "4"]] and found(graph, ["0", "3"]) == [["0"], ["3"]]
    assert found(graph, []) == []


class Changed(nn.Module):
    """What the first layer reads is changed in place before the second one runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer0, self.layer1, self.act = nn.Conv2d(8, 8, 1), sparse(), sparse(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        y = self.layer0(h)
        return self.act(h) + self.layer1(y)


def test_what_is_changed_in_place_is_read_before() -> None:
    model, x = Changed().eval(), torch.randn(2, 8, 9, 9)
    graph = trace(model)
    with torch.no_grad():
        expected = model(x)
        chain(graph)
        torch.testing.assert_close(graph(x), expected)


def test_which_layers_are_chains_by_themselves() -> None:
    graph = graph_of(sparse(), sparse(), nn.Conv2d(8, 8, 1), sparse())
    assert single(graph, ["0", "1", "3"]) == {"3"} and single(graph, ["0", "3"]) == {"0", "3"}
    assert single(graph, ["0", "1"]) == set()


def test_sums_in_another_order_are_no_other_model(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(IMAGES)
    prepared, chosen = all_sparse(tiny_resnet(BasicBlock), x)
    fast = assemble(prepared.dense, chosen, chosen.keys())
    forward = ConvChain.forward
    monkeypatch.setattr(ConvChain, "forward", lambda chain, x: 1.004 * forward(chain, x))
    assert chains(fast) and prepare(fast, (x,)).note is None


def test_what_keeps_a_layer_out() -> None:
    half, hooked = sparse().half(), sparse()
    hooked.register_forward_hook(lambda module, args, y: None)
    strange = dense(padding_mode="reflect"), dense().half()
    for other in (half, hooked, nn.Conv2d(8, 8, 1), *strange):
        assert found(graph_of(sparse(), sparse(), other, sparse(), sparse())) == [["0", "1"], ["3", "4"]]


def forms_of(model: nn.Module, x: Tensor) -> Any:
    prepared, forms = all_sparse(model, x)
    return prepared, forms, {name: [form] for name, form in forms.items()}, choices_of(prepared, forms)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_a_dense_resnet_is_one_chain(block: type[BasicBlock | Bottleneck]) -> None:
    prepared = prepare(tiny_resnet(block), (torch.randn(IMAGES),))
    fast = assemble(prepared.dense, {}, prepared.names)
    assert len(chains(fast)) == 1
    assert set(chained(fast)) == set(prepared.names) - {"fc"} | {"maxpool", "avgpool"}
    for shape in (IMAGES, (1, 3, 40, 48)):
        x = torch.randn(shape)
        with torch.no_grad():
            near(fast(x), prepared.dense(x), 1e-5)


@pytest.mark.parametrize("pruned", [False, True])
def test_a_mobilenet_is_one_chain(pruned: bool) -> None:
    x = torch.randn(IMAGES)
    model = settled(SmallMobileNet(), IMAGES)
    prepared, chosen = all_sparse(model, x) if pruned else (prepare(model, (x,)), {})
    apart, fast = assemble(prepared.dense, chosen), assemble(prepared.dense, chosen, prepared.names)
    assert len(chains(fast)) == 1 and set(chained(fast)) >= set(prepared.names) - {"head"}
    for batch in (x, torch.randn(1, 3, 40, 48)):
        with torch.no_grad():
            near(fast(batch), apart(batch), 1e-5)


def test_a_chain_that_makes_the_model_faster_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3, 16, 16)
    prepared, forms, alternatives, choices = forms_of(settled(SmallNet()), x)
    timed(monkeypatch, 2.0)
    winners = {"stem.0": forms["stem.0"]}
    chosen, after, names = choose_chains(prepared.dense, alternatives, winners, choices, (x,))
    assert names == chosen.keys() == forms.keys(), "also those that lost by themselves"
    assert all(f"in a chain of {len(forms)} layers, 2.00x" in choice.reason for choice in after)
    assert all(choice.chosen == "float unstructured sparse" for choice in after)
    fast = assemble(prepared.dense, chosen, names)
    assert set(chained(fast)) == names | {"pool", "lifted_mean"} and len(chains(fast)) == 1


def test_a_chain_that_does_not_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3, 16, 16)
    prepared, _, alternatives, choices = forms_of(settled(SmallNet()), x)
    timed(monkeypatch, 0.9)
    assert choose_chains(prepared.dense, alternatives, {}, choices, (x,)) == ({}, choices, set())


def test_a_run_that_loses_with_its_dense_layers_is_tried_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3, 16, 16)
    prepared, forms, alternatives, choices = forms_of(settled(SmallNet()), x)
    del alternatives["block1.conv1"]  # the stem's readers: this one, and the residual of the next
    timed(monkeypatch, 0.9, 2.0)
    chosen, after, names = choose_chains(prepared.dense, alternatives, {}, choices, (x,))
    # The next one adds what the dense one would have read beside it, so no chain can hold it either.
    assert names == chosen.keys() == forms.keys() - {"block1.conv1", "block1.conv2"}
    assert {c.name for c in after if "in a chain of" in c.reason} == names


def test_dense_layers_go_into_chains_where_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3, 16, 16)
    prepared, forms, _, choices = forms_of(settled(SmallNet()), x)
    timed(monkeypatch, 2.0)
    choices = [replace(choice, reason="kept dense: not pruned") for choice in choices]
    chosen, after, names = choose_chains(prepared.dense, {}, {}, choices, (x,))
    assert chosen == {} and names == forms.keys()
    words = f"in a chain of {len(names)} layers, 2.00x the model without it; not pruned"
    assert {(choice.chosen, choice.reason) for choice in after} == {("dense float", words)}
    assert set(chained(assemble(prepared.dense, {}, names))) >= names


def test_layers_that_are_runs_by_themselves_are_timed_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [nn.Conv2d(3, 8, 3), nn.GELU(), nn.Conv2d(8, 8, 3), nn.Sigmoid(), nn.Conv2d(8, 8, 1), nn.Sigmoid()]
    x = torch.randn(2, 3, 12, 12)
    prepared, _, alternatives, choices = forms_of(nn.Sequential(*layers).eval(), x)
    count = timed(monkeypatch, 2.0, 2.0, 0.9, 1.5)  # the first is confirmed, the second loses; then the model
    chosen, after, names = choose_chains(prepared.dense, alternatives, {}, choices, (x,))
    assert len(count) == 5 and names == chosen.keys() and len(names) == 1
    words = [choice.reason for choice in after if choice.name in names]
    assert words == ["in a chain of its own, 1.50x the model without it; alone int8 is 0.50x"]
    assert len(chains(assemble(prepared.dense, chosen, names))) == 1
