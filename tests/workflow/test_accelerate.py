"""accelerate: int8 layers given are kept with what surrounds them, again and again, and the result reloads."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import torchaccel as ta
from tests.models import Branching, SmallNet, settled
from torchaccel import measure


@pytest.fixture(autouse=True)
def _all_are_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    faster = measure.Comparison(2.0, 2.0, 2.0, (2.0,), (1.0,))
    monkeypatch.setattr(measure, "compare", lambda dense, candidate, **_: (dense(), candidate(), faster)[2])
    monkeypatch.setattr("torchaccel.workflow.candidates.served", lambda layer, device: None)


def _classifier() -> nn.Module:
    head = nn.Sequential(nn.Linear(32, 16), nn.GELU(), nn.Linear(16, 4))
    return nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), head)


def _same(given: nn.Module, model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        expected = model(x)
        assert (given(x) - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize("build", [_classifier, SmallNet, Branching])
@pytest.mark.parametrize("config", [ta.Int8Static(), ta.Int8Dynamic(), ta.Int8WeightOnly(), None])
def test_a_model_accelerated_twice_reloads(build, config: object, tmp_path: Path) -> None:
    shape = (8, 16) if build is _classifier else (4, 3, 16, 16)
    model, x = settled(build(), shape), torch.randn(shape)
    fast = copy.deepcopy(model)
    if config is not None:
        ta.quantize_(fast, config, calibration=[x] if isinstance(config, ta.Int8Static) else None)
    layers = sum(type(m).__name__.startswith("Int8") for m in fast.modules())
    for _ in range(2):
        fast = ta.accelerate(fast, (x,))
        exchanged = [choice for choice in fast.choices if choice.chosen.startswith("int8")]
        assert sum("Pool" not in choice.type for choice in exchanged) == layers
        _same(fast, model, x)
        ta.save(fast, tmp_path / "model.safetensors")
        loaded = ta.load(tmp_path / "model.safetensors", build)
        with torch.no_grad():
            assert torch.equal(loaded(x), fast(x))
            assert torch.equal(pickle.loads(pickle.dumps(fast))(x), fast(x))


def test_a_quantized_model_in_half_precision() -> None:
    model = settled(SmallNet()).bfloat16()
    x = torch.randn(4, 3, 16, 16, dtype=torch.bfloat16)
    quantized = copy.deepcopy(model)
    ta.quantize_(quantized, ta.Int8Dynamic())
    fast = ta.accelerate(quantized, (x,))
    assert fast(x).dtype == torch.bfloat16
    _same(fast, model, x)
