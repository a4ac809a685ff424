"""optimize and benchmark on models that are out of the ordinary."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import torchaccel as ta
from tests.models import SmallNet, settled
from torchaccel import measure
from torchaccel.workflow import forms

IMAGES = (4, 3, 16, 16)


@pytest.fixture(autouse=True)
def _faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every candidate is taken for faster, and torch.compile is left out."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(forms, "_compiled", lambda model, **options: (_ for _ in ()).throw(RuntimeError("left out")))
    faster = measure.Comparison(2.0, 2.0, 2.0, (2.0,), (1.0,))
    monkeypatch.setattr(measure, "compare", lambda dense, candidate, **_: (dense(), candidate(), faster)[2])
    monkeypatch.setattr("torchaccel.workflow.candidates.served", lambda layer, device: None)


class _Two(nn.Module):
    """Two inputs, and an output of integers alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(3, 16, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.a(x) + self.b(y)).argmax(1)


def test_two_inputs_and_an_output_of_integers() -> None:
    inputs = torch.randn(IMAGES), torch.randn(IMAGES)
    values = iter([1.0] + [0.5] * 10)
    result = ta.optimize(_Two(), inputs, evaluate=lambda model: next(values))
    assert not result.passed
    assert all("put back for accuracy" in layer["reason"] for layer in result.report.layers)
    assert ta.optimize(_Two(), inputs, calibration=[(*inputs, "label")]).passed


def test_a_model_pruned_before_is_compared_without_its_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = settled(SmallNet()), torch.randn(IMAGES)
    ta.sparsify_(model, ta.Sparsity("1x4", 0.75))
    seen = []

    def noting(given: nn.Module, inputs: tuple[Tensor, ...]):
        seen.append(given)
        return forms.dense_forms(given, inputs)

    monkeypatch.setattr(importlib.import_module("torchaccel.workflow.benchmark"), "dense_forms", noting)
    result = ta.optimize(model, (x,))
    assert "int8 1x4 sparse" in {layer["chosen"] for layer in result.report.layers}
    assert not any("parametriz" in name for name, _ in seen[0].named_modules())
    assert any("parametriz" in name for name, _ in model.named_modules())


def test_benchmark_leaves_each_modules_mode() -> None:
    model = SmallNet().train()
    model.block1.eval()
    before = [m.training for m in model.modules()]
    ta.benchmark(model, (torch.randn(IMAGES),), budget_s=0.01)
    assert [m.training for m in model.modules()] == before


def test_a_dense_form_takes_the_same_calls_as_the_model() -> None:
    model = settled(SmallNet()).double()
    form, x = forms.Cast(model, torch.float64, channels_last=True), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert form(x).dtype == form(x=x).dtype == torch.float32
        torch.testing.assert_close(form(x=x), model(x.double()).float())
