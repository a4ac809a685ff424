"""The demo from data to files, with a small model and a few digits; and what it refuses."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from torchaccel.demo import run
from torchaccel.demo.mnist import Mnist
from torchaccel.demo.recipes import Recipe
from torchaccel.demo.train import Schedule
from torchaccel.workflow.checkpoint import load


def small_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.arange(300, dtype=np.uint8) % 10
    images = np.zeros((300, 28, 28), np.uint8)
    images[np.arange(300), 4 + 2 * labels.astype(int), 4:24] = 255
    steps = ((0.5, Schedule(128, 0.1, batch_size=64)), (0.75, Schedule(192, 0.1, batch_size=64)))
    monkeypatch.setattr(run, "load_mnist", lambda data: Mnist(images, labels, images[:100], labels[:100]))
    monkeypatch.setattr(run, "recipe", lambda model, quick: Recipe(small_net, Schedule(320, 0.1, batch_size=64), steps))


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next(folder.iterdir())))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_demo_writes_report_model_and_events(tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.get_rng_state()
    out = tmp_path / "new" / "out"
    result = run.demo(out=out, device="cpu")
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers were disturbed"

    report = json.loads((out / "report.json").read_text())
    assert report == result.report.data
    assert report["batch_size"] == run.BATCH_SIZE["cpu"]
    assert report["model"] == "resnet18 on MNIST"
    assert report["demo"]["model"] == "resnet18" and report["demo"]["dense_images"] == 320
    assert report["demo"]["dense_accuracy"] == report["baseline"]["accuracy"]
    assert "<html" in (out / "report.html").read_text()
    assert sorted(p.name for p in out.iterdir()) == ["model.safetensors", "report.html", "report.json", "tensorboard"]

    x = torch.randn(64, 1, 28, 28)
    with torch.no_grad():
        again = load(out / "model.safetensors", small_net)(x)
        torch.testing.assert_close(again, result.model(x), rtol=1e-4, atol=1e-4)

    curves = scalars(out / "tensorboard")
    assert [step for step, _ in curves["loss"]] == list(range(1, 11))  # 5 dense steps, then 2 and 3
    assert [step for step, _ in curves["accuracy"]] == [5, 7, 10]
    assert [round(value, 2) for _, value in curves["sparsity/3"]] == [0.0, 0.5, 0.75]
    assert curves["speed/speedup"][0] == (10, pytest.approx(result.report.speedup))
    assert curves["speed/latency_ms/optimized"][0][1] > 0
    assert [step for step, _ in curves["layers/speedup"]] == [*range(len(result.report.layers))]

    printed = capsys.readouterr()
    assert printed.out == "", "standard output belongs to the caller"
    assert "fine-tuning at 75%: accuracy" in printed.err
    told = run.told(result, out)
    assert told.startswith(result.report.summary().rstrip()) and str(out / "model.safetensors") in told


def test_without_tensorboard_the_demo_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    events = run.Events(tmp_path / "events")
    assert events.missing is not None and "pip install tensorboard" in events.missing
    events.scalar("loss", 1.0, 1)
    events.close()
    assert not (tmp_path / "events").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "vgg16"}, "model is 'vgg16', accepted are resnet18, resnet50"),
        ({"device": "tpu"}, "device is 'tpu', accepted are auto, cpu and cuda"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_made(tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run.demo(out=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_cuda_without_cuda_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"device is 'cuda', but this torch .*; accepted here are auto and cpu"):
        run.demo(out=tmp_path / "out", device="cuda")


def test_an_unwritable_folder_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"demo: out is .*file/out', which cannot be written to"):
        run.demo(out=tmp_path / "file" / "out")
