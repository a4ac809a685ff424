"""The report as TensorBoard reads it back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.util import tensor_util

from torchaccel.report import Report


def read(run: Path) -> EventAccumulator:
    assert [path for path in run.iterdir() if path.is_dir()] == [], "a run of its own would be hard to compare"
    events = EventAccumulator(str(run))
    events.Reload()
    return events


def points(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(e.step, pytest.approx(e.value)) for e in events.Scalars(tag)]


def text(events: EventAccumulator, tag: str) -> str:
    return tensor_util.make_ndarray(events.Tensors(f"{tag}/text_summary")[0].tensor_proto).item().decode()


def test_scalars(data: dict[str, Any], tmp_path: Path) -> None:
    Report(data).to_tensorboard(tmp_path / "new" / "run", step=7)
    events = read(tmp_path / "new" / "run")
    assert points(events, "speed/speedup") == [(7, 2.0)]
    assert (points(events, "speed/speedup_low"), points(events, "speed/speedup_high")) == ([(7, 1.9)], [(7, 2.1)])
    assert points(events, "speed/latency_ms/baseline") == [(7, 12.0)]
    assert points(events, "speed/samples_per_second/optimized") == [(7, 5333.3)]
    assert (points(events, "accuracy/baseline"), points(events, "accuracy/optimized")) == ([(7, 0.99)], [(7, 0.988)])
    assert (points(events, "size_mb/baseline"), points(events, "size_mb/optimized")) == ([(7, 44.0)], [(7, 5.5)])
    assert points(events, "layers/speedup") == [(0, 1.0), (1, 3.0), (2, 1.0)]
    assert points(events, "layers/sparsity") == [(0, 0.0), (1, 0.9), (2, 0.0)]


def test_texts(data: dict[str, Any], tmp_path: Path) -> None:
    data["layers"][0]["reason"] = "a|b"
    report = Report(data)
    report.to_tensorboard(tmp_path)
    events = read(tmp_path)
    assert [line[4:] for line in text(events, "report/summary").splitlines()] == report.summary().splitlines()
    table = text(events, "report/layers").splitlines()
    assert len(table) == 2 + 3 and "a\\|b" in table[2]
    assert table[3] == (
        "| 1 | layer1.0.conv1 | Conv2d | 64x32x3x3 | 90.0 % | sparse_int8_conv2d 1x4 | 3.00x | 3.00x at N=32 |"
    )


def test_hyperparameters_name_metrics_that_are_there(data: dict[str, Any], tmp_path: Path) -> None:
    data["settings"] = {"pattern": "1x4", "amount": 0.9, "int8": "Int8Static"}
    Report(data).to_tensorboard(tmp_path)
    events = read(tmp_path)
    contents = events.PluginTagToContent("hparams")
    held = {name: plugin_data_pb2.HParamsPluginData.FromString(content) for name, content in contents.items()}
    given = held["_hparams_/session_start_info"].session_start_info.hparams
    assert (given["pattern"].string_value, given["amount"].number_value) == ("1x4", 0.9)
    assert given["model"].string_value == "resnet18" and given["threads"].number_value == 2
    assert "gpu" not in given
    metrics = {info.name.tag for info in held["_hparams_/experiment"].experiment.metric_infos}
    assert metrics == {"speed/speedup", "speed/latency_ms/optimized", "accuracy/optimized", "size_mb/optimized"}
    assert metrics <= set(events.Tags()["scalars"])


def test_what_was_not_measured_is_left_out(nothing_won: dict[str, Any], tmp_path: Path) -> None:
    nothing_won |= {"speedup_ci95": None, "environment": {}, "gates": None, "model": None}
    nothing_won["layers"][0]["speedup"] = None
    Report(nothing_won).to_tensorboard(tmp_path)
    events = read(tmp_path)
    assert not [tag for tag in events.Tags()["scalars"] if tag.startswith("accuracy") or tag.endswith("_low")]
    assert [step for step, _ in points(events, "layers/speedup")] == [1, 2]


def test_without_tensorboard_the_error_names_the_extra(
    data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install tensorboard.*torchaccel\[tensorboard\]"):
        Report(data).to_tensorboard(tmp_path / "run")
    assert not (tmp_path / "run").exists()
