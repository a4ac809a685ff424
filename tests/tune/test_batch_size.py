"""find_batch_size: what it tries, where it ends, what it proposes and refuses, mostly on a clock of the test's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchaccel as ta
from torchaccel import measure
from torchaccel.tune import _memory, batch_size


class Scripted(nn.Module):
    """Takes as long as `cost(batch size)` says, in seconds, on a clock of its own."""

    def __init__(self, cost: Callable[[int], float]) -> None:
        super().__init__()
        self.cost, self.now = cost, 0.0
        self.sizes: list[int] = []
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.now += self.cost(len(x))
        self.sizes.append(len(x))
        assert not self.training and not torch.is_grad_enabled()
        return x * self.weight


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ta.tune.BatchSizes]:
    def find(cost: Callable[[int], float], **more: Any) -> ta.tune.BatchSizes:
        model = Scripted(cost)

        def seconds(step: Callable[[], object], repeats: int = 1) -> float:
            before = model.now
            for _ in range(repeats):
                step()
            return (model.now - before) / repeats

        monkeypatch.setattr(measure, "seconds", seconds)
        found = ta.tune.find_batch_size(model.train(), (torch.ones(3, 2),), budget_s=0.0, **more)
        assert model.training
        return found

    return find


def sizes(found: ta.tune.BatchSizes) -> list[int]:
    return [row.batch_size for row in found.rows]


def test_the_smallest_that_is_nearly_as_fast_as_the_best(scripted: Any) -> None:
    """Samples a second are 1000 n / (n + 2): they reach 95% of the bound, 1000, at 38."""
    found = scripted(lambda n: (n + 2) / 1000)
    best = max(row.samples_per_s for row in found.rows)
    assert found.suggestion == next(n for n in sizes(found) if 1000 * n / (n + 2) >= 0.95 * best) == 48
    row = next(row for row in found.rows if row.batch_size == 32)
    assert row.ms == pytest.approx(34) and row.samples_per_s == pytest.approx(32 / 0.034)
    assert "smallest with 95% of the best samples a second" in found.reason


def test_it_ends_where_two_doublings_bring_nothing(scripted: Any) -> None:
    found = scripted(lambda n: max(n, 8) / 1000)
    assert sizes(found) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
    assert found.suggestion == 8 and found.ended == "larger ones bring no more samples a second"


def test_a_limit_on_latency(scripted: Any) -> None:
    found = scripted(lambda n: (n + 10) / 1000, max_latency_ms=26.5)
    assert found.suggestion == 16 and found.reason.endswith("within 26.5 ms (615.4)")
    assert sizes(found)[-1] == 24 and found.ended == "24 takes longer than 26.5 ms"
    none = scripted(lambda n: 0.03, max_latency_ms=20)
    assert none.suggestion is None and none.reason == "one sample takes 30 ms, more than 20 ms"


def test_a_limit_on_the_size(scripted: Any) -> None:
    found = scripted(lambda n: 1.0, max_batch_size=7)
    assert sizes(found) == [1, 2, 3, 4, 6]
    assert found.suggestion == 6 and found.ended == "7 is the largest that was asked for"
    assert sizes(scripted(lambda n: 1.0, max_batch_size=1)) == [1]


def test_memory_is_asked_for_before_it_is_taken(scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Meter:
        def __init__(self, device: torch.device) -> None:
            self.last = 0

        def peak(self, step: Callable[[], object]) -> int:
            return len(step()) * 100 * 2**20

    monkeypatch.setattr(batch_size, "Meter", Meter)
    monkeypatch.setattr(batch_size, "free", lambda device: 2000 * 2**20)
    found = scripted(lambda n: 1.0)
    assert sizes(found) == [1, 2, 3, 4, 6, 8, 12, 16]
    assert found.ended == "24 would take about 2400 MiB of memory; 2000 MiB are free"
    assert found.rows[-1].memory_mb == pytest.approx(1600 * 2**20 / 1e6)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_memory_that_runs_out(scripted: Any, error: Exception) -> None:
    def cost(n: int) -> float:
        if n > 4:
            raise error
        return 1.0

    found = scripted(cost)
    assert sizes(found) == [1, 2, 3, 4] and found.ended == "memory did not suffice for 6"


def test_a_model_that_takes_one_size_only(scripted: Any) -> None:
    def cost(n: int) -> float:
        if n != 3:
            raise ZeroDivisionError("of three")
        return 1.0

    found = scripted(cost)
    assert sizes(found) == [3] and found.ended == "a batch of 4 raised ZeroDivisionError: of three"
    with pytest.raises(ValueError, match="a batch of 2 raised ZeroDivisionError: of three"):
        scripted(cost, max_batch_size=2)
    with pytest.raises(ValueError, match="a batch of 3 raised ZeroDivisionError"):
        scripted(lambda n: 1 / 0)


def test_a_model_that_needs_a_few_samples() -> None:
    """BatchNorm in training has no variance of one value."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    settings = {"loss": lambda model, batch: model(batch[0]).square().sum(), "max_batch_size": 4, "budget_s": 0}
    optimizer = torch.optim.SGD(model.parameters())
    found = ta.tune.find_batch_size(model, (torch.randn(2, 2),), optimizer=optimizer, **settings)
    assert sizes(found) == [2, 3, 4]


def test_training_steps_train() -> None:
    model, seen = nn.Linear(2, 2), set()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        seen.add((len(batch[0]), batch[1].tolist()[:3] == [0, 1, 2][: len(batch[1])], model.training))
        assert optimizer.param_groups[0]["lr"] == 0.0
        return nn.functional.cross_entropy(model(batch[0]), batch[1] % 2)

    data = (torch.randn(3, 2), torch.arange(3))
    found = ta.tune.find_batch_size(model.eval(), data, loss=loss, optimizer=optimizer, max_batch_size=4, budget_s=0)
    assert seen == {(n, True, True) for n in (1, 2, 3, 4)}
    assert found.training and found.summary().startswith("training on ")
    assert not model.training and optimizer.param_groups[0]["lr"] == 0.1


def test_real_times_and_memory_of_a_model(tmp_path: Path) -> None:
    class Wide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.repeat(1, 4 << 20).sum(1)  # 16 MiB for each sample

    torch.ones(1 << 28)  # 1 GiB once, which does not count
    found = ta.tune.find_batch_size(Wide(), (torch.ones(1, 1),), max_batch_size=8, budget_s=0)
    assert len(found.rows) >= 4
    for row in found.rows[2:]:
        assert 0.8 * row.batch_size * 2**24 < row.memory_mb * 1e6 < 1.5 * row.batch_size * 2**24 + 2**24
    assert all(row.ms > 0 for row in found.rows)
    found.to_json(tmp_path / "a.json")
    read = json.loads((tmp_path / "a.json").read_text())
    assert read["suggestion"] == found.suggestion and len(read["rows"]) == len(found.rows)
    assert f"{found.rows[0].samples_per_s:.1f}" in found.summary() and "<- suggestion" in found.summary()


def test_an_optimized_model() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3)).eval()
    fast = ta.accelerate(model, (torch.randn(2, 3, 8, 8),))
    found = ta.tune.find_batch_size(fast, (torch.randn(2, 3, 8, 8),), max_batch_size=6, budget_s=0)
    assert sizes(found) == [1, 2, 3, 4, 6]


def test_free_memory_is_what_the_container_may_still_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _memory.free(torch.device("cpu"))
    assert whole is not None and 2**26 < whole < 2**50
    limit, used = tmp_path / "max", tmp_path / "current"
    used.write_text("1000\n")
    monkeypatch.setattr(_memory, "_GROUPS", ((str(limit), str(used)),))
    for text, expected in (("5000\n", 4000), ("max\n", whole), ("10", 0)):
        limit.write_text(text)
        assert _memory.free(torch.device("cpu")) == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize(
    ("inputs", "settings", "message"),
    [
        (torch.ones(1), {}, "accepted is a tuple of tensors"),
        ((torch.ones(()),), {}, r"accepted is a tuple of tensors \[N, ...\]"),
        ((torch.ones(2), torch.ones(3)), {}, r"have the shapes \(2,\), \(3,\), accepted is the same N >= 1"),
        ((torch.ones(0, 2),), {}, "accepted is the same N >= 1 in all"),
        ((torch.ones(1),), {"loss": sum}, "loss is given alone, accepted are loss and optimizer, or neither"),
        ((torch.ones(1),), {"loss": sum, "optimizer": 3}, "optimizer is a int, accepted is a torch.optim.Optimizer"),
        ((torch.ones(1),), {"max_latency_ms": 0}, "max_latency_ms is 0, accepted is above 0"),
        ((torch.ones(1),), {"max_latency_ms": "3"}, "max_latency_ms is '3', accepted is above 0"),
        ((torch.ones(1),), {"budget_s": -1}, "budget_s is -1, accepted are seconds from 0"),
        ((torch.ones(1),), {"max_batch_size": True}, "max_batch_size is True, accepted is at least 1"),
        ((torch.ones(1),), {"max_batch_size": 0}, "max_batch_size is 0, accepted is at least 1"),
    ],
)
def test_bad_arguments(inputs: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^find_batch_size: .*{message}"):
        ta.tune.find_batch_size(nn.Identity(), inputs, **settings)
