"""Pattern "channel" from `optimize` to a reloaded checkpoint: gates, steps, the report, files that do not fit."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import torchaccel as ta
from tests.compress import networks
from tests.models import Branching, SmallMobileNet, SmallNet, settled
from tests.workflow.test_optimize import X, _own_cache, _times, eager_only  # noqa: F401
from torchaccel.compress import finalize_masks_
from torchaccel.compress.removal import record_of
from torchaccel.report import Report
from torchaccel.workflow.checkpoint import KEY

HALF = ta.Sparsity("channel", 0.5)
STEPS = ta.Sparsity("channel", 0.5, steps=(0.25, 0.5))


def wide() -> nn.Module:
    return SmallNet(64)


def widths(model: nn.Module) -> tuple[int, int]:
    return model.stem[0].out_channels, model.head.in_features


def reloaded(model: nn.Module, path: Path, model_fn, x: torch.Tensor) -> nn.Module:
    """What `load` makes of what `save` wrote, after both gave the same to the bit."""
    ta.save(model, path)
    found = ta.load(path, model_fn)
    with torch.no_grad():
        assert torch.equal(found(x), model(x))
        assert found(x[:1]).shape == model(x[:1]).shape
    return found


@pytest.mark.usefixtures("eager_only")
@pytest.mark.parametrize("int8", [None, ta.Int8Static(), ta.Int8Dynamic()])
def test_from_optimize_to_a_reloaded_checkpoint(int8, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _times(monkeypatch, 2.0)
    model, seen = settled(wide()), []
    before = copy.deepcopy(model.state_dict())

    def finetune(narrow: nn.Module, step: int) -> None:
        seen.append((step, widths(narrow), narrow))

    result = ta.optimize(model, X, sparsity=STEPS, int8=int8, finetune=finetune)
    assert result.passed and [(step, found) for step, found, _ in seen] == [(0, (48, 96)), (1, (32, 64))]
    assert seen[0][2] is seen[1][2] is not model
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    data = result.report.data
    rows = {layer["name"]: layer for layer in data["layers"]}
    assert rows["block2.conv1"]["channels"] == "64 of 128 out, 32 of 64 in"
    assert rows["head"]["channels"] == "64 of 128 in" and "64, 32, 3, 3" in rows["block2.conv1"]["shape"]
    removed = data["removed"]
    assert removed["before"]["stem.0"] == 64 and len(removed["remaining"]["stem.0"]) == 32
    assert removed["kept"] == {"head": "its channels are the model's output"}
    assert removed["parameters"][0] == sum(p.numel() for p in model.parameters()) > removed["parameters"][1]
    assert any("channels removed from 6 layers: 0.31 -> 0.08 million" in note for note in data["gates"]["notes"])
    result.report.to_json(tmp_path / "r.json")
    Report.from_json(tmp_path / "r.json").to_html(tmp_path / "r.html")
    assert "64 of 128 out, 32 of 64 in" in (tmp_path / "r.html").read_text()
    again = reloaded(result.model, tmp_path / "m.safetensors", wide, X[0])
    reloaded(again, tmp_path / "again.safetensors", wide, X[0])


@pytest.mark.usefixtures("eager_only")
def test_the_last_step_that_is_accurate_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Accuracy falls with the second step, recovers in the third and falls for good in the last one."""
    _times(monkeypatch, 2.0)
    model = settled(wide())
    scores = {64: 1.0, 48: 0.9, 32: 1.0, 16: 0.5}

    def evaluate(model: nn.Module) -> float:
        return scores[widths(model)[0]] if isinstance(model, SmallNet) else 1.0

    steps = ta.Sparsity("channel", 0.75, steps=(0.25, 0.5, 0.75))
    result = ta.optimize(model, X, sparsity=steps, int8=None, evaluate=evaluate)
    notes = " ".join(result.report.data["gates"]["notes"])
    assert "evaluate gave 0.9000 at 25%, 1.0000 at 50%, 0.5000 at 75% of the channels removed" in notes
    assert "asked was 0.9950: back to the model as it is with 50%" in notes and "after pruning" not in notes
    assert result.passed and len(result.report.data["removed"]["remaining"]["stem.0"]) == 32
    reloaded(result.model, tmp_path / "m.safetensors", wide, X[0])


@pytest.mark.usefixtures("eager_only")
def test_where_no_step_is_accurate_all_channels_come_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _times(monkeypatch, 2.0)
    model = settled(wide())

    def evaluate(model: nn.Module) -> float:
        return 1.0 if not isinstance(model, SmallNet) or widths(model)[0] == 64 else 0.9

    result = ta.optimize(model, X, sparsity=STEPS, int8=None, evaluate=evaluate)
    notes = result.report.data["gates"]["notes"]
    assert (
        any("back to the model with all its channels" in note for note in notes) and "removed" not in result.report.data
    )
    assert "no channels were removed" in notes and not any("channels" in layer for layer in result.report.layers)
    assert result.passed
    with torch.no_grad():
        assert torch.allclose(result.model(X[0]), model(X[0]), atol=1e-4)
    reloaded(result.model, tmp_path / "m.safetensors", wide, X[0])


@pytest.mark.usefixtures("eager_only")
def test_a_model_that_was_no_faster_keeps_its_channels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _times(monkeypatch, 0.9)
    result = ta.optimize(settled(wide()), X, sparsity=HALF)
    assert not result.passed and "removed" not in result.report.data
    assert not any("channels" in layer for layer in result.report.layers)
    reloaded(result.model, tmp_path / "m.safetensors", wide, X[0])


@pytest.mark.usefixtures("eager_only")
def test_where_nothing_can_go_the_report_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    _times(monkeypatch, 2.0)
    result = ta.optimize(settled(SmallNet(16)), X, sparsity=ta.Sparsity("channel", 0.1), int8=None)
    note = next(note for note in result.report.data["gates"]["notes"] if "no channels could be removed" in note)
    assert "10% of its 16 channels leave no smaller multiple of 16" in note


@pytest.mark.parametrize(
    "build", [SmallMobileNet, networks.Growing, networks.SmallUNet, networks.Flattening, networks.Gated, Branching]
)
@pytest.mark.parametrize("int8", [None, ta.Int8Dynamic()])
def test_narrow_networks_reload_to_the_bit(build, int8, tmp_path: Path) -> None:
    model = settled(build(), (4, 3, 16, 16))
    ta.remove_channels_(model, X, 0.5)
    if int8 is not None:
        ta.quantize_(model, int8)
    found = reloaded(model, tmp_path / "m.safetensors", build, X[0])
    assert record_of(found) == record_of(model) and (record_of(model) or build is Branching)


def test_accelerate_and_a_wrapper_keep_the_record(tmp_path: Path) -> None:
    model = nn.Sequential(settled(wide()))
    ta.remove_channels_(model[0], X, 0.5)
    reloaded(model, tmp_path / "m.safetensors", lambda: nn.Sequential(wide()), X[0])
    reloaded(ta.accelerate(model, X), tmp_path / "a.safetensors", lambda: nn.Sequential(wide()), X[0])


def test_masks_go_on_top_of_removed_channels(tmp_path: Path) -> None:
    model = settled(wide())
    ta.remove_channels_(model, X, 0.5)
    assert "block2.conv1" in ta.sparsify_(model, ta.Sparsity("1x4", 0.5)).pruned
    reloaded(finalize_masks_(model), tmp_path / "m.safetensors", wide, X[0])


def test_parts_of_a_narrow_model_are_saved_too(tmp_path: Path) -> None:
    model = settled(wide())
    ta.remove_channels_(model, X, 0.5)
    x = torch.randn(2, 32, 8, 8)
    reloaded(model.block2, tmp_path / "a.safetensors", lambda: wide().block2, x)
    reloaded(nn.Sequential(model.block1, model.block2), tmp_path / "b.safetensors", lambda: parts(wide()), x)


def parts(model: nn.Module) -> nn.Module:
    return nn.Sequential(model.block1, model.block2)


def test_a_layer_that_takes_the_place_of_a_narrow_one_has_its_own_width(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))

    model = build().eval()
    ta.remove_channels_(model, (torch.randn(4, 8),), 0.5)
    model[2], model[4] = nn.Linear(32, 64), nn.Linear(64, 3)
    assert {name: sides["out"] for name, sides in record_of(model).items() if "out" in sides} == {"0": [32, 64]}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = settled(wide())
    ta.remove_channels_(model, X, 0.5)
    ta.save(model, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def rewritten(path: Path, channels: object) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()[KEY])
    save_file(load_file(path), path, {KEY: json.dumps(metadata | {"channels": channels})})


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ({}, r"does not fit the model of model_fn: Error(.|\n)*size mismatch"),
        ({"stem.0": {"out": [0, 64]}}, "metadata of .* is not torchaccel's: channels of layer 'stem.0' are"),
        ("all", "channels is str, accepted is an object"),
        ({"stem.9": {"out": [32, 64]}}, "model_fn does not build the model of .*no layer 'stem.9'"),
        ({"relu": {"out": [32, 64]}}, "no layer 'relu'"),
        ({"stem.0": {"out": [16, 64]}}, "does not fit"),
    ],
)
def test_a_damaged_record_is_refused(saved: Path, channels: object, message: str) -> None:
    rewritten(saved, channels)
    with pytest.raises(ValueError, match=message):
        ta.load(saved, wide)


def test_a_model_of_another_width_is_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"has 48 output channels in the model, 64 before removal in the file"):
        ta.load(saved, lambda: SmallNet(48))


def test_loading_needs_no_torch_pruning(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch_pruning", None)
    assert widths(ta.load(saved, wide)) == (32, 64)


def test_sensitivity_says_what_to_use() -> None:
    with pytest.raises(ValueError, match=r"pattern 'channel', accepted are those of masks.*optimize removes them"):
        ta.sensitivity(settled(SmallNet()), X, sparsity=HALF)
