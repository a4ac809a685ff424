"""The plots' geometry: lengths in proportion, everything inside the frame."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest

from torchaccel.report import _plots


def test_bars_are_in_proportion(data: dict[str, Any]) -> None:
    bars = {bar["label"]: bar for bar in _plots.latency(data)}
    assert list(bars) == ["torchaccel", "compiled", "eager", "channels_last"]
    assert bars["eager"]["width"] == 100
    assert bars["compiled"]["width"] == pytest.approx(100 * 12 / 18)
    assert bars["torchaccel"]["width"] == pytest.approx(100 * 6 / 18)
    assert bars["channels_last"]["width"] is None and bars["channels_last"]["note"] == "out of memory"
    assert [bar["style"] for bar in bars.values()] == ["after", "best", "dense", "dense"]


def test_sizes(data: dict[str, Any]) -> None:
    bars = _plots.sizes(data)
    assert bars is not None
    assert [bar["width"] for bar in bars] == [pytest.approx(12.5), 100]
    data["optimized"]["size_bytes"] = None
    assert _plots.sizes(data) is None


def test_accuracy_lies_within_its_band(data: dict[str, Any]) -> None:
    plot = _plots.accuracy(data)
    assert plot is not None
    assert 0 < plot["allowed"]["x"] < plot["after"] < plot["before"] < 100
    # A drop of 0.2 points of the 0.5 allowed.
    assert (plot["before"] - plot["after"]) / plot["allowed"]["width"] == pytest.approx(0.4)


@pytest.mark.parametrize(("before", "after"), [(1.0, 1.0), (0.0, 0.0), (0.5, 0.9), (0.9, 0.1), (0.99, 0.9899)])
def test_accuracy_stays_inside(data: dict[str, Any], before: float, after: float) -> None:
    data["baseline"]["accuracy"], data["optimized"]["accuracy"] = before, after
    plot = _plots.accuracy(data)
    assert plot is not None
    assert 0 <= plot["before"] <= 100 and 0 <= plot["after"] <= 100
    assert plot["allowed"]["x"] >= 0 and plot["allowed"]["width"] >= 0


def test_trials_share_an_axis_and_count_outliers(data: dict[str, Any]) -> None:
    data["trials"]["baseline_ms"].append(90.0)
    plot = _plots.trials(data)
    assert plot is not None
    dense, fast = plot["ridges"]
    assert 0 < fast["median"] < dense["median"] < 100
    assert (dense["beyond"], fast["beyond"]) == (1, 0)
    assert all(0 <= dot <= 100 for ridge in plot["ridges"] for dot in ridge["dots"])
    assert "median 12.00 ms of 5 trials" in dense["text"]
    for ridge in plot["ridges"]:
        heights = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", ridge["path"])]
        assert min(heights) == 4 and max(heights) == 100
    assert [float(text) for _, text in plot["axis"]] == sorted({float(text) for _, text in plot["axis"]})


@pytest.mark.parametrize("values", [[6.0], [6.0, 6.0, 6.0], [1e-3, 1e3]])
def test_trials_of_few_or_equal_values(data: dict[str, Any], values: list[float]) -> None:
    data["trials"] = {"baseline_ms": values, "optimized_ms": values}
    plot = _plots.trials(data)
    assert plot is not None and "nan" not in plot["ridges"][0]["path"]


def test_no_trials(data: dict[str, Any]) -> None:
    assert _plots.trials(data | {"trials": None}) is None
    assert _plots.trials(data | {"trials": {"baseline_ms": [1.0], "optimized_ms": []}}) is None


def test_layer_columns_go_up_and_down_alike(data: dict[str, Any]) -> None:
    data["layers"][0]["speedup"], data["layers"][1]["speedup"], data["layers"][2]["speedup"] = 0.5, 2.0, None
    plot = _plots.layer_speedups(data["layers"])
    assert plot is not None
    slow, fast, unknown = plot["columns"]
    assert slow["height"] == pytest.approx(fast["height"])
    assert fast["y"] + fast["height"] == pytest.approx(slow["y"])
    assert "height" not in unknown
    assert [column["style"] for column in plot["columns"]] == ["dense", "after", "dense"]
    assert all(0 <= column["y"] <= column["y"] + column["height"] <= plot["height"] for column in (slow, fast))
    assert (pytest.approx(slow["y"]), "1x", True) in plot["axis"]


@pytest.mark.parametrize("speedups", [[0.01, 1.0, 300.0], [1.0, 1.01, 1.0], [0.2, 0.3, 0.4]])
def test_layer_axis_is_readable(data: dict[str, Any], speedups: list[float]) -> None:
    for layer, speedup in zip(data["layers"], speedups, strict=True):
        layer["speedup"] = speedup
    plot = _plots.layer_speedups(data["layers"])
    assert plot is not None
    heights = sorted(y for y, _, _ in plot["axis"])
    assert all(0 <= y <= plot["height"] for y in heights)
    assert all(b - a >= 20 for a, b in itertools.pairwise(heights))
    assert len(heights) >= 2


def test_layer_times(data: dict[str, Any]) -> None:
    plot = _plots.layer_times(data["layers"])
    assert plot is not None
    kept, fast, _ = plot["columns"]
    assert [bar["style"] for bar in kept["pair"]] == ["best"]
    dense, accelerated = fast["pair"]
    assert dense["height"] == pytest.approx(3 * accelerated["height"])
    assert dense["y"] + dense["height"] == pytest.approx(plot["height"])
    for layer in data["layers"]:
        layer["dense_ms"] = layer["chosen_ms"] = 0.0
    assert _plots.layer_times(data["layers"]) is None


@pytest.mark.parametrize(("low", "high"), [(0, 1.3), (0, 0.0042), (5.6, 13.1), (99.1, 99.4), (0, 8e4)])
def test_ticks_are_round_and_few(low: float, high: float) -> None:
    ticks = _plots.ticks(low, high)
    assert 2 <= len(ticks) <= 11
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)
    assert all(len(f"{tick:.6g}") <= 7 for tick in ticks)
