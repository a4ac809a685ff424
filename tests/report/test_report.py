"""The report's contract: what it accepts, keeps and writes."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from torchaccel.report import Report


def test_json_round_trip(data: dict[str, Any], tmp_path: Path) -> None:
    Report(data).to_json(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == data
    again = Report.from_json(tmp_path / "report.json")
    assert again.data == data
    assert again.speedup == 2.0
    assert again.layers is again.data["layers"]
    assert [layer["name"] for layer in again.layers] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"]


def test_the_data_is_copied_into_plain_types(data: dict[str, Any]) -> None:
    data["speedup"] = np.float32(2.0)
    data["baseline"]["size_bytes"] = np.int64(44_000_000)
    data["layers"][0]["shape"] = (np.int64(64), 32)
    data["layers"][0]["kernel_notes"] = {"tile": (1, 4)}
    before = copy.deepcopy(data)
    report = Report(data)
    assert data == before
    assert type(report.data["speedup"]) is float and type(report.data["baseline"]["size_bytes"]) is int
    assert report.layers[0]["shape"] == [64, 32]
    assert report.layers[0]["kernel_notes"] == {"tile": [1, 4]}
    report.layers[0]["name"] = "changed"
    assert data["layers"][0]["name"] == "conv1"


def test_optional_parts_may_be_missing(data: dict[str, Any], tmp_path: Path) -> None:
    for key in ("model", "forms", "gates", "trials"):
        del data[key]
    for layer in data["layers"]:
        del layer["dense_ms"], layer["chosen_ms"]
        layer |= {"speedup": None, "sparsity": None, "shape": "64x32x3x3"}
    for form in (data["baseline"], data["optimized"]):
        form |= {"accuracy": None, "size_bytes": None}
    data |= {"speedup_ci95": None, "environment": {}}
    report = Report(data)
    assert "model: 2.00x faster" in report.summary()
    assert "not measured" in report.summary()
    report.to_html(tmp_path / "report.html")


def test_a_report_without_layers(data: dict[str, Any], tmp_path: Path) -> None:
    report = Report(data | {"layers": []})
    report.to_html(tmp_path / "report.html")
    assert "layers" not in report.summary()


BAD = [
    ("speedup", 0, "report: speedup is 0, accepted is a finite number above 0"),
    ("speedup", math.nan, "report: speedup is nan, accepted is a finite number above 0"),
    ("speedup", "2x", "report: speedup is '2x', accepted is a finite number above 0"),
    ("speedup", True, "report: speedup is True"),
    ("speedup_ci95", [1.0], "report: speedup_ci95 is [1.0], accepted is a list of 2"),
    ("speedup_ci95", [2.0, 1.0], "accepted is [low, high] with low <= high"),
    ("batch_size", 0, "report: batch_size is 0, accepted is a whole number, at least 1"),
    ("batch_size", 1.5, "report: batch_size is 1.5"),
    ("layers", {}, "report: layers is {}, accepted is a list"),
    ("layers", [None], "report: layers[0] is None, accepted is a dict with name, type"),
    ("layers.1.sparsity", 90, "report: layers[1].sparsity is 90, accepted is a fraction from 0 to 1"),
    ("layers.2.speedup", -1.0, "report: layers[2].speedup is -1.0"),
    ("layers.2.shape", [64, -1], "report: layers[2].shape[1] is -1, accepted is a whole number, at least 0"),
    ("layers.0.name", 7, "report: layers[0].name is 7, accepted is text"),
    ("baseline.accuracy", math.nan, "report: baseline.accuracy is nan, accepted is a finite number"),
    ("baseline.latency_ms", math.inf, "report: baseline.latency_ms is inf"),
    ("optimized.size_bytes", -5, "report: optimized.size_bytes is -5"),
    ("gates.speed_passed", "yes", "report: gates.speed_passed is 'yes', accepted is true or false"),
    ("trials.optimized_ms", [6.0, -6.0], "report: trials.optimized_ms[1] is -6.0"),
    ("forms.0.latency_ms", 0.0, "report: forms[0].latency_ms is 0.0"),
    ("environment", None, "report: environment is None, accepted is a dict"),
    ("environment.cpu", object, "report: environment.cpu is <class 'object'>, accepted is null, text"),
    ("environment.load", math.nan, "report: environment.load is nan, accepted is a finite number"),
]


@pytest.mark.parametrize(("path", "value", "message"), BAD, ids=[f"{path}={value!r}" for path, value, _ in BAD])
def test_bad_values_are_named(data: dict[str, Any], path: str, value: object, message: str) -> None:
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place: Any = data
    for part in parents:
        place = place[part]
    place[last] = value
    with pytest.raises(ValueError) as error:
        Report(data)
    assert message in str(error.value)


@pytest.mark.parametrize("path", ["baseline", "layers", "speedup", "optimized.throughput", "layers.1.reason"])
def test_missing_keys_are_named(data: dict[str, Any], path: str) -> None:
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place: Any = data
    for part in parents:
        place = place[part]
    del place[last]
    dotted = path.replace(".1.", "[1].")
    with pytest.raises(ValueError, match=f"^report: {dotted.replace('[', chr(92) + '[')} is missing; "):
        Report(data)


def test_files_that_hold_no_report(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"report\.json is not JSON"):
        Report.from_json(path)
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"data is \[1, 2\], accepted is a dict with baseline.*report\.json"):
        Report.from_json(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not JSON"):
        Report.from_json(path)
