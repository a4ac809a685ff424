"""The interval is an interval of the median, and comparisons pair their samples."""

from __future__ import annotations

import contextlib
import itertools
import random

import pytest
import torch

from torchaccel import measure


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    generator = random.Random(0)
    hits = 0
    for _ in range(1000):
        low, high = measure.median_interval([generator.expovariate(1.0) for _ in range(25)])
        hits += low <= 0.6931 <= high
    assert 930 <= hits <= 995


@pytest.mark.parametrize("values", [[3.0], [1.0, 2.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
def test_few_samples_give_their_whole_range(values: list[float]) -> None:
    assert measure.median_interval(values) == (min(values), max(values))


def test_six_samples_are_the_fewest_that_say_anything() -> None:
    # P(all six on one side) = 2 / 64 < 5%, so the range itself is the interval; nine may drop one on each side.
    assert measure.median_interval([1, 2, 3, 4, 5, 6]) == (1, 6)
    assert measure.median_interval([1, 2, 3, 4, 5, 6, 7, 8, 9]) == (2, 8)


def test_a_comparison_calls_both_in_turns_and_reports_the_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [0.0], []
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])

    def step(name: str, cost: float):
        def run() -> None:
            calls.append(name)
            clock[0] += cost

        return run

    result = measure.compare(step("slow", 0.006), step("fast", 0.002), budget_s=0.2)
    assert result.speedup == pytest.approx(3.0) and result.low == pytest.approx(3.0) == result.high
    assert result.baseline_median_ms == pytest.approx(6.0) and result.candidate_median_ms == pytest.approx(2.0)
    assert len(result.baseline_ms) == len(result.candidate_ms) >= 9
    timed = calls[-8:]
    assert timed.count("slow") == timed.count("fast") == 4
    assert any(a == b for a, b in itertools.pairwise(timed)), "which goes first should alternate"


def test_a_step_that_no_graph_holds_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def step() -> None:
        calls.append(1)

    assert measure.replayed(step, torch.device("cpu")) is step and not calls
    monkeypatch.setattr(torch.cuda, "Stream", lambda: (_ for _ in ()).throw(RuntimeError("capturing is not allowed")))
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    assert measure.replayed(step, torch.device("cuda")) is step and not calls


def test_a_step_is_warmed_up_and_captured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    where = ["outside"]

    class Stream:
        def wait_stream(self, other: object) -> None:
            calls.append("wait")

    class Graph:
        def replay(self) -> None:
            calls.append("replay")

    @contextlib.contextmanager
    def inside(name: str):
        where.append(name)
        yield
        where.pop()

    for name, value in {
        "device": lambda device: contextlib.nullcontext(),
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda stream: inside("side stream"),
        "synchronize": lambda: None,
        "CUDAGraph": Graph,
        "graph": lambda graph, capture_error_mode: inside("capture"),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    replay = measure.replayed(lambda: calls.append(where[-1]), torch.device("cuda"))
    replay()
    assert calls == ["wait", "side stream", "wait", "capture", "replay"]
