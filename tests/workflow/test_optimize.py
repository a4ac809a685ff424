"""optimize: the gates hold, the model given stays as it is, and bad input is named."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import torchaccel as ta
from tests.models import Branching, SmallNet, settled
from torchaccel import measure
from torchaccel.nn import ConvChain


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def eager_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave torch.compile out, which takes longer than all else here."""
    from torchaccel.workflow import forms

    monkeypatch.setattr(forms, "_compiled", lambda model, **options: (_ for _ in ()).throw(RuntimeError("left out")))


def _times(monkeypatch: pytest.MonkeyPatch, speedup: float) -> None:
    """Replace the clock: every candidate is `speedup` times as fast as what it is compared with, native or not."""

    def compare(baseline, candidate, **_: object) -> measure.Comparison:
        baseline(), candidate()
        return measure.Comparison(speedup, speedup, speedup, (speedup,) * 9, (1.0,) * 9)

    monkeypatch.setattr(measure, "compare", compare)
    monkeypatch.setattr("torchaccel.workflow.candidates.served", lambda layer, device: None)


def _agreement(reference: nn.Module):
    x = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = reference(x).argmax(1)
    return lambda model: float((model(x).argmax(1) == expected).float().mean())


X = (torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(2)),)


def test_a_faster_model_is_returned_with_its_proof(eager_only, monkeypatch, tmp_path: Path) -> None:
    _times(monkeypatch, 2.0)
    model = settled(SmallNet())
    before = copy.deepcopy(model.state_dict())
    result = ta.optimize(
        model.train(), X, calibration=[X[0], (X[0], None)], evaluate=_agreement(settled(SmallNet())), max_drop=0.1
    )
    assert result.passed and result.report.speedup == 2.0
    assert model.training and all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert {layer["chosen"] for layer in result.report.layers} == {"int8"}
    with torch.no_grad():
        reference = settled(SmallNet())(X[0])
        given = result.model(X[0])
        assert (given - reference).norm() < 0.1 * reference.norm()
        assert result.model(X[0][:3]).shape == (3, 10)
    data = result.report.to_json(tmp_path / "r.json") or json.loads((tmp_path / "r.json").read_text())
    assert data["baseline"]["form"] in ("eager", "channels_last")
    assert data["optimized"]["size_bytes"] < 0.5 * data["baseline"]["size_bytes"]
    assert any("left out" in form["note"] for form in data["forms"])


def test_nothing_slower_is_ever_returned(eager_only, monkeypatch) -> None:
    _times(monkeypatch, 0.9)
    model = settled(SmallNet())
    result = ta.optimize(model, X)
    assert not result.passed and result.report.speedup == 1.0
    assert all(layer["chosen"] == "dense float" for layer in result.report.layers)
    assert all("kept dense" in layer["reason"] for layer in result.report.layers)
    with torch.no_grad():
        torch.testing.assert_close(result.model(X[0]), model(X[0]), rtol=1e-4, atol=1e-4)


def test_the_accuracy_gate_puts_layers_back(eager_only, monkeypatch) -> None:
    _times(monkeypatch, 2.0)
    model, seen = settled(SmallNet()), []

    def evaluate(candidate: nn.Module) -> float:
        int8 = sum(type(m).__name__.startswith("Int8") and type(m) is not ConvChain for m in candidate.modules())
        seen.append(int8)
        return 1.0 - 0.01 * int8

    result = ta.optimize(model, X, evaluate=evaluate, max_drop=0.03)
    assert result.passed
    assert seen[0] == 0 and seen[1] == 9 and seen[-1] <= 3, seen
    back = [layer for layer in result.report.layers if "put back for accuracy" in layer["reason"]]
    assert len(back) == 9 - seen[-1]


def test_an_accuracy_that_cannot_be_held_gives_the_dense_form(eager_only, monkeypatch) -> None:
    _times(monkeypatch, 2.0)
    calls = iter(range(100))
    result = ta.optimize(settled(SmallNet()), X, evaluate=lambda m: 1.0 if next(calls) == 0 else 0.0)
    assert not result.passed and result.report.speedup == 1.0
    assert any("evaluate fell" in note for note in result.report.data["gates"]["notes"])


def test_layers_are_reported_as_they_are_returned(eager_only, monkeypatch) -> None:
    _times(monkeypatch, 2.0)
    result = ta.optimize(settled(SmallNet()), X, sparsity=ta.Sparsity("1x4", 0.5), min_speedup=3.0)
    assert not result.passed
    assert all(layer["sparsity"] == 0 for layer in result.report.layers), "what is returned was not pruned"
    assert all(layer["chosen"] == "dense float" and layer["speedup"] == 1.0 for layer in result.report.layers)
    reasons = [layer["reason"] for layer in result.report.layers]
    assert all(
        "back to dense with the whole model, though i" in reason and ": 2.00x dense" in reason for reason in reasons
    )


def test_pruning_in_steps_calls_finetune_and_masks_hold(eager_only, monkeypatch) -> None:
    _times(monkeypatch, 2.0)
    steps: list[tuple[int, float]] = []

    def finetune(model: nn.Module, step: int) -> None:
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        model(torch.randn(8, 3, 16, 16)).square().mean().backward()
        optimizer.step()
        zeros = (model.block2.conv2.weight == 0).float().mean()
        steps.append((step, round(float(zeros), 2)))

    result = ta.optimize(
        settled(SmallNet()), X, sparsity=ta.Sparsity("1x4", 0.75, steps=(0.5, 0.75)), finetune=finetune
    )
    assert [step for step, _ in steps] == [0, 1]
    assert [zeros for _, zeros in steps] == pytest.approx([0.5, 0.75], abs=0.02)
    chosen = {layer["name"]: layer["chosen"] for layer in result.report.layers}
    assert chosen["block2.conv2"] == "int8 1x4 sparse" and chosen["stem.0"] == "int8"


def test_without_int8_pruned_layers_run_sparse_in_float(eager_only, monkeypatch) -> None:
    _times(monkeypatch, 2.0)
    model = settled(SmallNet())
    result = ta.optimize(model, X, sparsity=ta.Sparsity("1x4", 0.25), int8=None)
    chosen = {layer["name"]: layer["chosen"] for layer in result.report.layers}
    assert chosen["block2.conv2"] == "float 1x4 sparse" and chosen["stem.0"] == "dense float"
    reasons = {layer["name"]: layer["reason"] for layer in result.report.layers}
    assert reasons["stem.0"].startswith("in a chain of 6 layers") and reasons["stem.0"].endswith(
        "; not pruned, not quantized"
    )
    assert any("outputs moved by" in note for note in result.report.data["gates"]["notes"])


def test_an_untraceable_model_is_served_and_told(eager_only, monkeypatch) -> None:
    _times(monkeypatch, 2.0)
    model = settled(Branching())
    result = ta.optimize(model, X)
    assert result.passed
    assert any("not traced" in note for note in result.report.data["gates"]["notes"])
    with torch.no_grad():
        assert (result.model(X[0]) - model(X[0])).norm() < 0.1 * model(X[0]).norm()


def test_measured_choices_are_remembered(eager_only, monkeypatch) -> None:
    compared: list[int] = []
    model = settled(SmallNet())
    _times(monkeypatch, 2.0)
    faked = measure.compare

    def counting(*args: object, **kwargs: object) -> measure.Comparison:
        compared.append(1)
        return faked(*args, **kwargs)

    monkeypatch.setattr(measure, "compare", counting)
    ta.optimize(model, X)
    first = len(compared)
    ta.optimize(model, X)
    assert len(compared) - first == 3, "only the whole model is timed again, and twice with its chain"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"example_inputs": torch.ones(1)}, "example_inputs: given Tensor"),
        ({"example_inputs": ()}, "example_inputs"),
        ({"example_inputs": (1,)}, "int"),
        ({"max_drop": -1}, "max_drop: given -1"),
        ({"max_drop": float("nan")}, "max_drop"),
        ({"min_speedup": "fast"}, "min_speedup: given 'fast'"),
        ({"finetune": lambda m, s: None}, "finetune: given without sparsity"),
        ({"evaluate": lambda m: float("nan")}, "evaluate returned nan"),
        ({"evaluate": lambda m: "good"}, "evaluate returned 'good'"),
        ({"calibration": []}, "calibration"),
        ({"int8": "int8"}, "int8"),
        ({"sparsity": 0.9}, "sparsity"),
    ],
)
def test_bad_input_is_named(arguments: dict, says: str) -> None:
    model = settled(SmallNet())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises((ValueError, TypeError), match=says):
        ta.optimize(model, **({"example_inputs": X} | arguments))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_an_evaluate_that_raises_is_named_with_its_cause() -> None:
    def broken(model: nn.Module) -> float:
        raise KeyError("labels")

    with pytest.raises(RuntimeError, match="evaluate raised KeyError on the original model") as raised:
        ta.optimize(settled(SmallNet()), X, evaluate=broken)
    assert isinstance(raised.value.__cause__, KeyError)


def test_a_model_of_linear_layers() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(64, 256), nn.Linear(256, 64)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(torch.nn.functional.gelu(self.up(x)))

    model, x = Tokens().eval(), torch.randn(2, 9, 64)
    fast = ta.accelerate(model, (x,))
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)


def test_filter_fn_says_which_layers_are_changed(eager_only, monkeypatch) -> None:
    _times(monkeypatch, 2.0)
    asked: dict[str, nn.Module] = {}

    def but_one(module: nn.Module, name: str) -> bool:
        asked[name] = module
        return name != "block1.conv2"

    model = settled(SmallNet())
    result = ta.optimize(model, X, sparsity=ta.Sparsity("1x4", 0.5), int8=ta.Int8Dynamic(), filter_fn=but_one)
    layers = {layer["name"]: layer for layer in result.report.layers}
    left = layers.pop("block1.conv2")
    assert (left["chosen"], left["sparsity"]) == ("dense float", 0.0) and "filter_fn left it out" in left["reason"]
    assert all(layer["chosen"].startswith("int8") for layer in layers.values())
    assert layers["head"]["sparsity"] > 0.4  # which stays dense by default
    assert set(asked) == {"block1.conv2", *layers} and all(isinstance(m, nn.Conv2d | nn.Linear) for m in asked.values())
    plain = ta.optimize(model, X, int8=ta.Int8Dynamic(), filter_fn=lambda module, name: name == "head")
    assert [layer["name"] for layer in plain.report.layers if layer["chosen"] != "dense float"] == ["head"]
