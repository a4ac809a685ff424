"""The networks of bench_model, and what it tells about them beside the time."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import bench_model
import model_costs
import torchaccel as ta
from models import MODELS
from torchaccel.compress.patterns import PATTERNS

# Parameters of torchvision 0.25's networks with 1000 classes.
PARAMETERS = {
    "resnet18": 11689512,
    "resnet50": 25557032,
    "mobilenet_v2": 3504872,
    "vgg16": 138357544,
    "densenet121": 7978856,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_has_torchvisions_parameters(name: str) -> None:
    with torch.device("meta"):
        model = MODELS[name]()
        assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
        assert model.eval()(torch.empty(2, 3, 64, 64)).shape == (2, 1000)
    classifiers = {"mobilenet_v2": "classifier.1", "vgg16": "classifier.6", "densenet121": "classifier"}
    last = f"{classifiers.get(name, 'fc')}.bias"
    assert list(model.state_dict())[-1] == last


def test_cspdarknet_is_all_silu() -> None:
    with torch.device("meta"):
        model = MODELS["cspdarknet"]().eval()
        assert model(torch.empty(2, 3, 64, 64)).shape == (2, 1000)
    kinds = [type(m) for m in model.modules()]
    assert kinds.count(nn.SiLU) == kinds.count(nn.Conv2d) == 5 + 4 * 3 + 2 * 7 + 2


def test_unet_returns_a_mask_of_the_images_size() -> None:
    with torch.device("meta"):
        model = MODELS["unet"]().eval()
        assert model(torch.empty(2, 3, 64, 48)).shape == (2, 2, 64, 48)
    assert sum(isinstance(m, nn.ConvTranspose2d) for m in model.modules()) == 4


def test_memory_counts_what_a_model_holds() -> None:
    """In a process of its own, as bench_model does it: ResNet-50 holds 97.5 MiB of weights."""
    command = [sys.executable, model_costs.__file__, "resnet50", "32", "1"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert 97 < found["running"] < 200
    assert found["loading"] > 97


def test_overhead_is_the_time_outside_of_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the whole call is compared with are its operators and nothing else, on the same tensors; what a first call
    does once does not count."""

    class Once(nn.Flatten):
        first = True

        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x.neg().neg() if self.first else x)
            self.first = False
            return y

    model, x = nn.Sequential(Once(), nn.Linear(4, 3), nn.ReLU()), torch.randn(1, 2, 2)

    def interleaved_ms(steps: list[Callable[[], object]], **_: object) -> list[float]:
        called = []
        for step in steps:
            with model_costs.Recorder() as recorder:
                step()
            called.append([(func, [a.data_ptr() for a in args if a is x]) for func, args, _ in recorder.calls])
        assert called[0] == called[1]
        assert len(called[0]) >= 3
        return [8.0, 5.0]

    monkeypatch.setattr(model_costs.measure, "interleaved_ms", interleaved_ms)
    assert model_costs.overhead(model, (x,)) == {"ms": 8.0, "outside_share": pytest.approx(3 / 8)}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_can_be_asked_for(pattern: str) -> None:
    assert bench_model.sparsity_of(f"{pattern}:0.5") == ta.Sparsity(pattern, 0.5)


def test_bad_sparsity_is_told() -> None:
    assert bench_model.sparsity_of("none") is None
    with pytest.raises(argparse.ArgumentTypeError, match=r"'5x5:0.5': Sparsity: pattern is '5x5', accepted are"):
        bench_model.sparsity_of("5x5:0.5")
