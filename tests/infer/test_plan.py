"""plan: which splits are measured, and that a split is the best only where it is surely faster."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest
import torch

from tests.infer.modules import Probe
from torchaccel import infer
from torchaccel.infer import Workers
from torchaccel.infer import plan as plans

planning = __import__("sys").modules["torchaccel.infer.plan"]  # `infer.plan` is the function


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, int], list[float]]:
    """Batches a second by (workers, threads) that are told instead of measured, on four cores."""
    told: dict[tuple[int, int], list[float]] = {}

    def given(crews: list[Workers], *_: Any) -> list[list[float]]:
        return [told[crew.workers, crew.threads] for crew in crews]

    monkeypatch.setattr(planning, "_rates", given)
    monkeypatch.setattr(planning.cores, "usable", lambda: 4)
    return told


def planned() -> infer.Plan:
    return plans(Probe().eval(), (torch.zeros(8, 1),), budget_s=0.01, pin=False)


def test_the_best_is_surely_faster_than_one_worker_with_all_threads(rates: dict[tuple[int, int], list[float]]) -> None:
    rates.update({(1, 4): [100.0] * 9, (2, 2): [90.0] * 4 + [200.0] * 5, (4, 1): [130.0] * 9})
    found = planned()
    assert [(s.workers, s.threads, s.processes) for s in found.splits] == [(1, 4, False), (2, 2, False), (4, 1, False)]
    assert (found.best.workers, found.best.threads) == (4, 1)  # 2 x 2 has the higher median, but may be slower
    assert found.best.samples_per_s == 8 * 130 and found.best.speedup == pytest.approx(1.3)
    assert found.splits[1].low == pytest.approx(0.9) and found.splits[1].samples_per_s == 8 * 200
    assert 0 < found.best.p50_ms <= found.best.p99_ms
    with found.start() as workers:
        assert (workers.workers, workers.threads, workers.processes) == (4, 1, False)
    starred = [line for line in found.summary().splitlines() if line.startswith("*")]
    assert len(starred) == 1 and "4 x 1 threads" in starred[0] and "1.30x (1.30 to 1.30)" in starred[0]
    assert found.to_dict()["best"]["workers"] == 4 and len(found.to_dict()["splits"]) == 3


def test_nothing_surely_faster_leaves_one_worker(rates: dict[tuple[int, int], list[float]]) -> None:
    rates.update({(1, 4): [100.0] * 9, (2, 2): [99.0] * 4 + [150.0] * 5, (4, 1): [50.0] * 9})
    assert (planned().best.workers, planned().best.threads) == (1, 4)


def test_it_measures_for_real_and_leaves_nothing_behind() -> None:
    before = threading.active_count(), torch.get_num_threads()
    found = plans(torch.nn.Linear(4, 4).eval(), (torch.zeros(2, 4),), budget_s=0.01)
    assert [split.workers * split.threads for split in found.splits] == [infer.cores.usable()] * len(found.splits)
    assert all(split.samples_per_s > 0 and split.low <= split.speedup <= split.high for split in found.splits)
    assert found.splits[0].workers == found.splits[0].speedup == 1
    assert (threading.active_count(), torch.get_num_threads()) == before


@pytest.mark.parametrize(
    "count, expected",
    [
        (1, [(1, 1)]),
        (2, [(1, 2), (2, 1)]),
        (6, [(1, 6), (2, 3), (4, 1), (6, 1)]),
        (8, [(1, 8), (2, 4), (4, 2), (8, 1)]),
    ],
)
def test_candidates_are_powers_of_two_and_one_for_each_core(count: int, expected: list[tuple[int, int]]) -> None:
    assert planning._candidates(count, False) == [(w, t, False) for w, t in expected]
    assert planning._candidates(count, True) == [(w, t, kind) for kind in (False, True) for w, t in expected]


def test_a_model_that_fails_on_the_inputs_raises_what_it_raised() -> None:
    before = threading.active_count()
    with pytest.raises(KeyError, match="minus one"):
        plans(Probe().eval(), (torch.full((1,), -1.0),))
    with pytest.raises(ValueError, match="accepted is a tuple of tensors"):
        plans(Probe().eval(), torch.zeros(1))  # type: ignore[arg-type]
    assert threading.active_count() == before
    assert len(os.sched_getaffinity(0)) >= 1
