"""The summary, and the sentences that the page shares with it."""

from __future__ import annotations

from typing import Any

import pytest

from torchaccel.report import Report, _facts, _format

EXPECTED = """\
resnet18: 2.00x faster than the best dense form of the model (compiled).
A CPU, 2 threads, batch size 32

             dense  optimized
latency   12.00 ms    6.00 ms  2.00x (95% interval 1.90x to 2.10x)
rate       2,667/s    5,333/s
accuracy   99.00 %    98.80 %  -0.20 points
size       44.0 MB     5.5 MB  8.00x smaller

form      compiled -> torchaccel
gate      speed passed: the lower end of the 95% interval is 1.90x; at least
          1.00x is demanded
gate      accuracy passed: 99.00 % before, 98.80 % after; a drop of up to 0.50
          points is allowed
note      conv1 put back for accuracy
layers    1 of 3 accelerated, 2 kept dense
          kept dense: 0.81x to 0.97x at N=32: conv1, layer1.0.conv2"""


def test_summary(data: dict[str, Any]) -> None:
    assert Report(data).summary() == EXPECTED


def test_nothing_won_is_said(nothing_won: dict[str, Any]) -> None:
    text = Report(nothing_won).summary()
    assert text.startswith("resnet18: Nothing was faster than the best dense form of the model (compiled)")
    assert "speed failed: no optimized model was shown to reach 1.00x" in text and "accuracy not checked" in text
    assert "form      compiled, unchanged" in text
    assert "0 of 3 accelerated, 3 kept dense" in text


def test_an_optimized_model_that_fails_a_gate_is_not_praised(data: dict[str, Any]) -> None:
    data |= {"optimized": dict(data["baseline"]), "speedup": 1.0, "speedup_ci95": [1.0, 1.0]}
    data["gates"]["accuracy_passed"] = False
    text = Report(data).summary()
    assert text.startswith("resnet18: The optimized model did not pass the accuracy gate")
    assert "accuracy failed: the optimized model lost too much" in " ".join(text.split())
    assert "1 of 3 would gain by themselves" in text


def test_accuracy_that_nobody_measured_has_not_passed(data: dict[str, Any]) -> None:
    data["baseline"]["accuracy"] = data["optimized"]["accuracy"] = None
    assert "accuracy not checked: accuracy was not measured" in Report(data).summary()


def test_scores_that_are_no_fractions(data: dict[str, Any]) -> None:
    data["baseline"]["accuracy"], data["optimized"]["accuracy"] = -1.25, -1.5
    data["gates"]["max_drop"] = 0.3
    text = Report(data).summary()
    assert "-0.25\n" in text and "-1.25 before, -1.5 after; a drop of up to 0.3" in text


def test_reasons_that_differ_in_figures_are_one(data: dict[str, Any]) -> None:
    reasons = ["int8 1x4 is 1.01x at N=2, interval from 0.97x", "int8 1x4 is 1.04x at N=2, interval from 0.91x"]
    data["layers"][0]["reason"], data["layers"][2]["reason"] = reasons
    merged = "int8 1x4 is 1.01x to 1.04x at N=2, interval from 0.91x to 0.97x"
    assert _facts.kept_dense(data["layers"]) == {merged: ["conv1", "layer1.0.conv2"]}


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [(0.99, 0.9881, "-0.19 points"), (0.99, 0.990001, "no change"), (-2.0, -1.5, "+0.5"), (0.9, None, "not measured")],
)
def test_score_changes(before: float, after: float | None, text: str) -> None:
    assert _format.score_change(before, after) == text


def test_an_interval_that_reaches_below_one_is_no_speedup(data: dict[str, Any]) -> None:
    data["speedup_ci95"] = [0.99, 2.1]
    assert _facts.outcome(data) == "unproven"
    assert "not shown to be faster" in " ".join(Report(data).summary().split())
    assert "faster than" not in Report(data).summary()


def test_the_machine_is_the_one_measured_on(data: dict[str, Any]) -> None:
    assert _facts.machine(data) == "A CPU, 2 threads, batch size 32"
    data["environment"] |= {"device": "cuda:0", "gpu": "A GPU", "threads": 1}
    assert _facts.machine(data) == "A GPU, 1 thread, batch size 32"


def test_forms_are_sorted_and_hold_the_baseline(data: dict[str, Any]) -> None:
    assert [form["form"] for form in _facts.dense_forms(data)] == ["compiled", "eager", "channels_last"]
    data["forms"] = []
    assert [form["form"] for form in _facts.dense_forms(data)] == ["compiled"]


def test_sizes_that_grow_are_said_to_grow(data: dict[str, Any]) -> None:
    data["optimized"]["size_bytes"] = 88_000_000
    assert _facts.size_change(data) == "2.00x larger"


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (_format.milliseconds, 0.0344, "0.034 ms"),
        (_format.milliseconds, 12.406, "12.41 ms"),
        (_format.milliseconds, 1234.56, "1,234.6 ms"),
        (_format.milliseconds, None, "-"),
        (_format.size, 999, "999 B"),
        (_format.size, 44_660_000, "44.7 MB"),
        (_format.size, 2_100_000_000, "2.1 GB"),
        (_format.ratio, 0.996, "0.996x"),
        (_format.ratio, 1.0, "1.00x"),
        (_format.ratio, 2.138, "2.14x"),
        (_format.score, 0.988, "98.80 %"),
        (_format.score, -1.25, "-1.25"),
        (_format.score, 98.8, "98.8"),
        (_format.rate, 3.14159, "3.14/s"),
        (_format.shape, [64, 3, 7, 7], "64x3x7x7"),
        (_format.shape, "(1, 64) @ (10, 64)", "1x64 @ 10x64"),
        (_format.date, "2026-01-02T03:04:05+00:00", "2026-01-02 03:04:05 UTC"),
    ],
)
def test_spelling(function: Any, value: Any, text: str) -> None:
    assert function(value) == text
