"""Pooling between int8 layers: which edges are int8, that outputs stay, and that functions become layers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import torchaccel as ta
from tests.models import SmallNet, settled
from torchaccel import measure
from torchaccel.compress import Int8Static, calibrate, residual_of
from torchaccel.demo.resnet import BasicBlock, Bottleneck, ResNet
from torchaccel.graph.cache import ChoiceCache
from torchaccel.graph.choose import choose
from torchaccel.graph.connect import assemble, disconnect
from torchaccel.graph.prepare import Prepared, prepare
from torchaccel.graph.trace import module_of
from torchaccel.nn import Int8AdaptiveAvgPool2d, Int8AvgPool2d, Int8Conv2d, Int8MaxPool2d
from torchaccel.nn.quantize import QuantizeInt8
from torchaccel.workflow.candidates import candidates

IMAGES = (2, 3, 33, 31)


def tiny_resnet(block: type[BasicBlock | Bottleneck]) -> nn.Module:
    """A ResNet with a stem, max-pool, four stages and a global average, its blocks' last scales not zero."""
    torch.manual_seed(0)
    model = ResNet(block, (1, 1, 1, 2), 3, 10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
    return settled(model, IMAGES)


def all_int8(model: nn.Module, x: Tensor) -> tuple[Prepared, dict[str, nn.Module]]:
    """The model prepared, and an int8 form for everything that has one."""
    prepared = prepare(copy.deepcopy(model), (x,))
    assert prepared.note is None
    ranges = calibrate(prepared.dense, [*prepared.names, *prepared.weightless], [(x,)], Int8Static(), 1)
    found = candidates(prepared, x.device, Int8Static(), ranges)
    return prepared, {name: forms[0] for name, forms in found.alternatives.items()}


def dtypes(model: nn.Module, x: Tensor) -> dict[str, tuple[torch.dtype, torch.dtype]]:
    """What each layer of a graph reads and writes."""
    seen: dict[str, Any] = {}
    handles = [
        module.register_forward_hook(lambda _, args, y, name=name: seen.update({name: (args[0].dtype, y.dtype)}))
        for name, module in model.named_modules()
        if not list(module.children()) and not getattr(module, "return_indices", False)
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return seen


def near(given: Tensor, expected: Tensor, within: float) -> None:
    assert (given - expected).norm() < within * expected.norm()


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_a_resnet_is_int8_from_stem_to_head(block, tmp_path: Path) -> None:
    model, x = tiny_resnet(block), torch.randn(IMAGES)
    prepared, chosen = all_int8(model, x)
    assert prepared.weightless == ["maxpool", "avgpool"] and set(prepared.weightless) < chosen.keys()
    fast = assemble(prepared.dense, chosen)
    seen = dtypes(fast, x)
    assert seen["maxpool"] == seen["avgpool"] == (torch.uint8, torch.uint8)
    assert [name for name, (_, out) in seen.items() if out == torch.float32] == ["fc"]
    assert [name for name, (given, _) in seen.items() if given == torch.float32] == ["conv1"]
    assert not any(isinstance(module, QuantizeInt8) for module in fast.modules())
    floats = assemble(prepared.dense, {name: m for name, m in chosen.items() if name not in prepared.weightless})
    assert dtypes(floats, x)["maxpool"] == (torch.float32, torch.float32)
    with torch.no_grad():
        near(fast(x), model(x), 0.1)
        near(fast(x), floats(x), 0.05)
    ta.save(fast, tmp_path / "model.safetensors")
    loaded = ta.load(tmp_path / "model.safetensors", lambda: ResNet(block, (1, 1, 1, 2), 3, 10))
    with torch.no_grad():
        for batch in (x, x[:1], torch.randn(3, 3, 40, 48)):
            assert torch.equal(loaded(batch), fast(batch))
    disconnect(fast)
    assert {out for _, out in dtypes(fast, x).values()} == {torch.float32}


def test_max_pooling_between_int8_layers_changes_no_bit() -> None:
    convolutions = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 8, 3)
    model, x = nn.Sequential(convolutions[0], nn.MaxPool2d(3, 2, 1), convolutions[1]).eval(), torch.randn(2, 3, 15, 16)
    prepared, chosen = all_int8(model, x)
    assert dtypes(assemble(prepared.dense, chosen), x)["1"] == (torch.uint8, torch.uint8)
    without = {name: module for name, module in chosen.items() if not isinstance(module, Int8MaxPool2d)}
    with torch.no_grad():
        assert torch.equal(assemble(prepared.dense, chosen)(x), assemble(prepared.dense, without)(x))


class Pools(nn.Module):
    """Pooling called as functions and methods, which an int8 layer precedes and follows."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head, self.how = nn.Linear(16, 5), how

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        if self.how == "functions":
            y = F.avg_pool2d(F.max_pool2d(y, 3, stride=2, padding=1), (2, 2), ceil_mode=True, count_include_pad=False)
        y = F.relu(self.b(y))
        if self.how == "functions":
            return self.head(torch.flatten(F.adaptive_avg_pool2d(y, (1, 1)), 1))
        if self.how == "mean":
            return self.head(y.mean((-1, -2)))
        if self.how == "kept mean":
            return self.head(torch.mean(y, dim=[2, 3], keepdim=True).flatten(1))
        return self.head(y.mean((0, 2, 3)) + y.mean((1, 2, 3)).sum() + F.avg_pool2d(y, y.shape[2:]).flatten(1))


@pytest.mark.parametrize(("how", "count"), [("functions", 3), ("mean", 1), ("kept mean", 1), ("others", 0)])
def test_functions_become_layers(how: str, count: int) -> None:
    model, x = Pools(how).eval(), torch.randn(2, 3, 13, 12)
    prepared, chosen = all_int8(model, x)
    assert len(prepared.weightless) == count
    with torch.no_grad():
        torch.testing.assert_close(prepared.dense(x), model(x), rtol=1e-5, atol=1e-5)
    fast = assemble(prepared.dense, chosen)
    with torch.no_grad():
        near(fast(x), model(x), 0.05)
        larger = torch.randn(1, 3, 20, 21)
        near(fast(larger), model(larger), 0.05)
    seen = dtypes(fast, x)
    assert all(seen[name] == (torch.uint8, torch.uint8) for name in prepared.weightless)


class Odd(nn.Module):
    """Pooling that must stay float: indices, a divisor, a second reader, a hook, floats for a second call."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.indices, self.divided = nn.MaxPool2d(2, return_indices=True), nn.AvgPool2d(2, divisor_override=3)
        self.hooked, self.twice, self.read = nn.MaxPool2d(1), nn.MaxPool2d(1), nn.MaxPool2d(1)
        self.hooked.register_forward_hook(lambda module, args, y: y * 2)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.indices(self.a(x))
        y = self.twice(self.twice(self.hooked(self.divided(y))))
        z = self.read(self.b(y))
        return z + z.mean()


def test_what_has_no_int8_form_stays() -> None:
    model, x = Odd().eval(), torch.randn(2, 3, 12, 12)
    prepared, chosen = all_int8(model, x)
    assert set(prepared.weightless) == {"indices", "divided", "read", "twice", "twice_1"}
    assert {"indices", "divided"}.isdisjoint(chosen)
    fast = assemble(prepared.dense, chosen)
    assert dtypes(fast, x)["read"] == (torch.float32, torch.float32)
    with torch.no_grad():
        near(fast(x), model(x), 0.05)


def chosen_by(monkeypatch, tmp_path: Path, model: nn.Module, x: Tensor, faster: Any) -> dict[str, Any]:
    """The choices where `faster(candidate)` decides which form is faster."""

    def compare(dense: Any, candidate: Any, **_: Any) -> measure.Comparison:
        module = candidate.__closure__ and next(
            cell.cell_contents for cell in candidate.__closure__ if isinstance(cell.cell_contents, nn.Module)
        )
        speedup = 2.0 if faster(module) else 0.5
        return measure.Comparison(speedup, speedup, speedup, (speedup,), (1.0,))

    monkeypatch.setattr(measure, "compare", compare)
    prepared, forms = all_int8(model, x)
    alternatives = {name: [form] for name, form in forms.items()}
    winners, choices = choose(prepared.dense, alternatives, {}, (x,), ChoiceCache(tmp_path / "cache.json"))
    return {"winners": winners, "choices": {c.name: c for c in choices}, "fast": assemble(prepared.dense, winners)}


def test_pooling_that_is_slower_stays_float(monkeypatch, tmp_path: Path) -> None:
    model, x = settled(SmallNet()), torch.randn(4, 3, 16, 16)
    got = chosen_by(monkeypatch, tmp_path, model, x, lambda module: not isinstance(module, Int8MaxPool2d))
    assert "pool" not in got["winners"] and "kept dense: int8 is 0.50x" in got["choices"]["pool"].reason
    assert dtypes(got["fast"], x)["pool"] == (torch.float32, torch.float32)


def test_pooling_beside_a_dense_layer_stays_float(monkeypatch, tmp_path: Path) -> None:
    model, x = settled(SmallNet()), torch.randn(4, 3, 16, 16)
    got = chosen_by(monkeypatch, tmp_path, model, x, lambda m: not (isinstance(m, Int8Conv2d) and m.in_channels == 3))
    assert "stem.0" not in got["winners"] and "pool" not in got["winners"]
    assert got["choices"]["pool"].reason == "kept dense: it is handed floats"
    assert got["choices"]["pool"].type == "MaxPool2d" and got["choices"]["pool"].sparsity == 0.0


def test_all_that_is_faster_is_int8(monkeypatch, tmp_path: Path) -> None:
    model, x = settled(SmallNet()), torch.randn(4, 3, 16, 16)
    got = chosen_by(monkeypatch, tmp_path, model, x, lambda module: True)
    kinds = {type(module) for module in got["winners"].values()}
    assert {Int8MaxPool2d, Int8AdaptiveAvgPool2d} < kinds and Int8AvgPool2d not in kinds
    assert all("int8: 2.00x" in choice.reason for choice in got["choices"].values())


def test_a_residual_alone_is_calibrated() -> None:
    model, x = settled(SmallNet()), torch.randn(4, 3, 16, 16)
    prepared, chosen = all_int8(model, x)
    adding = [n for n in prepared.dense.graph.nodes if len(n.all_input_nodes) == 2 and n.op == "call_module"]
    assert len(adding) == 2
    ranges = calibrate(prepared.dense, prepared.names, [(x,)], Int8Static(observer="minmax"), 1)
    assert {residual_of(str(n.target)) for n in adding} == ranges.keys() - set(prepared.names)
    fast: fx.GraphModule = assemble(prepared.dense, chosen)  # type: ignore[assignment]
    layers = [module_of(fast, n) for n in fast.graph.nodes if str(n.target) in {str(a.target) for a in adding}]
    assert all(layer.int8_residual for layer in layers)  # type: ignore[union-attr]


class ActivatedLate(nn.Module):
    """conv, max-pool, ReLU, as in many small networks."""

    def __init__(self, activation: nn.Module, dilation: int = 1, twice: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3)
        self.pool, self.activation, self.twice = nn.MaxPool2d(2, dilation=dilation), activation, twice

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(self.a(x))
        z = self.b(self.activation(y))
        return z + y.mean() if self.twice else z


@pytest.mark.parametrize(
    ("model", "fused"),
    [
        (ActivatedLate(nn.ReLU(inplace=True)), "relu"),
        (ActivatedLate(nn.ReLU6()), "relu6"),
        (ActivatedLate(nn.GELU()), "none"),
        (ActivatedLate(nn.ReLU(), dilation=2), "none"),
        (ActivatedLate(nn.ReLU(), twice=True), "none"),
    ],
)
def test_an_activation_goes_before_the_max_pool(model: ActivatedLate, fused: str) -> None:
    model, x = model.eval(), torch.randn(2, 3, 14, 14)
    prepared, chosen = all_int8(model, x)
    assert prepared.dense.get_submodule("a").activation == fused
    with torch.no_grad():
        torch.testing.assert_close(prepared.dense(x), model(x), rtol=1e-5, atol=1e-5)
    expected = torch.float32 if fused == "none" else torch.uint8
    assert dtypes(assemble(prepared.dense, chosen), x)["pool"] == (expected, expected)


class Counted(nn.Module):
    """A batch that is counted by the graph on the way from int8 to int8."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.end = nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(4), nn.Linear(8 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.b(self.a(x)).reshape(x.shape[0], -1))


def test_int8_passes_a_shape_that_the_graph_computes() -> None:
    x = torch.randn(2, 3, 16, 16)
    prepared, chosen = all_int8(Counted().eval(), x)
    assert dtypes(assemble(prepared.dense, chosen), x)["end"][0] in (torch.uint8, torch.int8)


class Pooled(nn.Module):
    """A pooling layer called twice, beside a buffer whose name its second layer would have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(8, 8, 3, padding=1), nn.MaxPool2d(2)
        self.register_buffer("pool_1", torch.full((1,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.conv(self.pool(x))) * self.pool_1


def test_a_pooling_layer_for_each_call_takes_no_name() -> None:
    x = torch.randn(2, 8, 16, 16)
    prepared = prepare(Pooled().eval(), (x,))
    assert prepared.note is None and torch.equal(prepared.dense.pool_1, torch.full((1,), 2.0))


def test_two_names_of_one_pooling_layer() -> None:
    graph = fx.symbolic_trace(nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 8, 1), nn.MaxPool2d(2)).eval())
    graph.add_module("2", graph.get_submodule("0"))
    prepared = prepare(graph, (torch.randn(2, 8, 16, 16),))
    assert prepared.note is None
