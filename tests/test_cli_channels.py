"""The command line with --sparsity channel: what it writes, what `inspect` shows of it, and what is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.test_cli import fails, run
from tests.workflow.test_optimize import _times
from torchaccel.workflow import forms


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """`optimize` in a folder with a module that builds a model; without torch.compile, which takes longest."""
    (tmp_path / "wide_factory.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Conv2d(16, 64, 3), nn.ReLU(), nn.Conv2d(64, 8, 3), nn.Flatten())\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    sys.modules.pop("wide_factory", None)
    monkeypatch.setattr(forms, "_compiled", lambda model, **options: (_ for _ in ()).throw(RuntimeError("left out")))
    _times(monkeypatch, 2.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = ["wide_factory:build", "--input", "2x16x8x8"]
    return ["optimize", *model, "--out", "o", "--sparsity", "channel:0.5", "--min-speedup", 0]


def test_channels_are_removed_and_shown(words: list[object]) -> None:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["removed"]["before"] == {"0": 64} and len(data["removed"]["remaining"]["0"]) == 32
    for file in ("o/model.safetensors", "o/report.json"):
        shown = run("inspect", file).stdout
        assert "channels" in shown and "32 of 64 out" in shown and "32 of 64 in" in shown
    layers = json.loads(run("inspect", "o/model.safetensors", "--json").stdout)["layers"]
    assert {layer["name"]: layer["channels"] for layer in layers} == {"0": "32 of 64 out", "2": "32 of 64 in"}


def test_without_torch_pruning_it_says_so_before_any_work(words: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    assert "--sparsity is channel:0.5, but removing channels needs torch-pruning: `pip install" in fails(*words)
    assert not Path("o").exists()


def test_sensitivity_is_of_masks() -> None:
    line = fails("sensitivity", "torchaccel.demo:resnet18", "--input", "1x1x28x28", "--sparsity", "channel:0.5")
    assert "given pattern 'channel', accepted are those of masks" in line
