"""find_lr: on problems whose best rates are known, and what it refuses."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchaccel as ta
from torchaccel.tune.rates import diverged


class Point(nn.Module):
    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.ones(size))


def noisy(count: int = 100) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [0.3 * torch.randn(8, generator=generator) for _ in range(count)]


def parabola(curvature: float) -> Any:
    """Plain gradient descent diverges beyond a rate of 2 / curvature."""
    return lambda model, target: curvature / 2 * (model.at - target).square().sum()


@pytest.mark.parametrize("curvature", [0.5, 20.0, 1000.0])
def test_the_suggestion_lies_below_where_descent_diverges(curvature: float) -> None:
    model = Point()
    found = ta.tune.find_lr(model, torch.optim.SGD(model.parameters()), noisy(), parabola(curvature))
    edge = 2 / curvature
    assert found.suggestion is not None and edge / 30 < found.suggestion < edge
    assert edge < found.rates[-1] < 20 * edge, "it ends where the loss has diverged"
    assert found.suggestion in [pytest.approx(rate / 3) for rate in found.rates]


def test_it_scales_with_the_problem() -> None:
    model, suggested = Point(), []
    for curvature in (1.0, 100.0):
        found = ta.tune.find_lr(model, torch.optim.SGD(model.parameters()), noisy(), parabola(curvature))
        suggested.append(found.suggestion * curvature)
    assert suggested[0] == pytest.approx(suggested[1], rel=0.25)


@pytest.mark.parametrize("of", [float, torch.tensor])
def test_rates_rise_by_one_factor_and_groups_keep_their_ratio(of: Any) -> None:
    model, other, seen = Point(), Point(), []

    def watched(_: Any, target: Tensor) -> Tensor:
        seen.append([float(group["lr"]) for group in optimizer.param_groups])
        return (model.at + other.at - target).square().sum()

    optimizer = torch.optim.Adam([{"params": [model.at], "lr": of(0.02)}, {"params": [other.at], "lr": of(0.2)}])
    found = ta.tune.find_lr(model, optimizer, noisy(), watched, min_lr=1e-6, max_lr=1e-2, steps=21)
    assert found.rates == pytest.approx([1e-6 * 10 ** (step / 5) for step in range(21)])
    assert seen == [pytest.approx([rate / 10, rate]) for rate in found.rates]
    assert [group["lr"] for group in optimizer.param_groups] == [of(0.02), of(0.2)]


def test_batches_are_taken_again_where_they_end_and_no_more_than_needed() -> None:
    model, taken = Point(), []
    batches = noisy(3)

    def watched(model: Any, target: Tensor) -> Tensor:
        taken.append(next(index for index, batch in enumerate(batches) if batch is target))
        return parabola(1.0)(model, target)

    ta.tune.find_lr(model, torch.optim.SGD(model.parameters()), batches, watched, max_lr=1e-3, steps=20)
    assert taken == list(itertools.islice(itertools.cycle(range(3)), 20))
    drawn = iter(noisy(30))
    ta.tune.find_lr(model, torch.optim.SGD(model.parameters()), drawn, parabola(1.0), max_lr=1e-3, steps=20)
    assert len(list(drawn)) == 10


def test_modes_are_the_models_own_but_for_one_in_evaluation_mode() -> None:
    seen = set()

    def watched(model: nn.Sequential, target: Tensor) -> Tensor:
        seen.add((model.training, model[0].training))
        return parabola(1.0)(model[1], target)

    model = nn.Sequential(nn.Dropout(), Point())
    model[0].eval()
    ta.tune.find_lr(model, torch.optim.SGD(model.parameters()), noisy(), watched, steps=20)
    ta.tune.find_lr(model.eval(), torch.optim.SGD(model.parameters()), noisy(), watched, steps=20)
    assert seen == {(True, False), (True, True)}


def test_it_trains_where_gradients_are_off() -> None:
    model = Point()
    with torch.no_grad():
        found = ta.tune.find_lr(model, torch.optim.SGD(model.parameters()), noisy(), parabola(1.0))
    assert found.suggestion is not None


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (lambda model, target: 5 + 0 * model.at.sum() + target.mean(), "the loss did not fall"),
        (lambda model, target: 2 + 0 * model.at.sum(), "the loss did not fall"),
        (lambda model, target: model.at.sum() * math.nan, "the loss is nan before the first step"),
        (lambda model, target: -1e3 * (model.at + 1e9 * model.at.detach() ** 9).mean().exp(), "before the first step"),
    ],
    ids=["noise", "constant", "NaN", "infinite"],
)
def test_no_suggestion_without_a_reason_for_it(value: Any, reason: str, tmp_path: Path) -> None:
    model = Point()
    found = ta.tune.find_lr(model, torch.optim.SGD(model.parameters()), noisy(), value)
    assert found.suggestion is None and reason in found.reason
    assert "suggestion  none: " in found.summary()
    found.to_json(tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())["suggestion"] is None
    found.plot()


@pytest.mark.parametrize("end", [[1e30, math.nan], [math.inf], [30.0] * 5], ids=["leap", "infinite", "four times"])
def test_how_it_diverged_does_not_matter(end: list[float]) -> None:
    rates = [10 ** (step / 10 - 6) for step in range(80)]
    losses = [2 + 0.01 * (-1) ** step - max(0, step - 30) / 20 for step in range(60)] + [
        0.6 + 0.3 * s for s in range(5)
    ]
    found = ta.tune.LearningRates.of(rates, losses + end)
    assert found.suggestion == pytest.approx(rates[59] / 3, rel=0.8) and len(found.smoothed) == len(losses + end)
    low, high = found.plot().axes[0].get_ylim()
    assert low < min(losses) and high < 40
    assert diverged(losses + end, 80) and not any(diverged(losses[:seen], 80) for seen in range(1, len(losses)))


def test_what_noise_alone_suggests_is_rare_and_what_falls_is_found() -> None:
    generator, rates = np.random.default_rng(0), [10 ** (step / 12 - 7) for step in range(100)]

    def share(fall: float, end: list[float]) -> float:
        """Of 200 tests in which the loss falls by so many standard deviations of its noise at step 60."""
        steps = np.arange(100 - len(end))
        drawn = 1 + 0.1 * generator.standard_normal((200, len(steps))) - 0.1 * fall * (steps > 60)
        found = [ta.tune.LearningRates.of(rates, [*losses, *end]).suggestion for losses in drawn.tolist()]
        assert all(rate is None or rate >= rates[0] for rate in found)
        return sum(rate is not None for rate in found) / len(found)

    assert share(0, []) < 0.04 and share(0, [2.0, 4.0, 8.0, math.nan]) < 0.04
    assert share(2, [2.0, 4.0, 8.0]) > 0.9


def test_a_range_that_is_too_low_is_told() -> None:
    model = Point()
    quiet = [0.01 * batch for batch in noisy()]
    found = ta.tune.find_lr(model, torch.optim.SGD(model.parameters()), quiet, parabola(1.0), max_lr=0.01)
    assert found.suggestion == pytest.approx(0.01 / 3, rel=0.3) and "still falls at max_lr" in found.reason


def test_what_it_returns_can_be_written_and_drawn(tmp_path: Path) -> None:
    model = Point()
    found = ta.tune.find_lr(model, torch.optim.SGD(model.parameters()), noisy(), parabola(10.0))
    found.to_json(tmp_path / "a.json")
    read = json.loads((tmp_path / "a.json").read_text())
    assert read["suggestion"] == found.suggestion and tuple(read["rates"]) == found.rates
    assert f"suggestion  {found.suggestion:.2g}: a third of" in found.summary()
    axes = found.plot().axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    assert tuple(lines["smoothed"].get_ydata()) == found.smoothed
    assert list(lines[f"suggestion {found.suggestion:.2g}"].get_xdata()) == [found.suggestion] * 2
    assert axes.get_xscale() == "log"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_lr": 0.0}, "min_lr is 0.0, max_lr is 10.0, accepted is 0 < min_lr < max_lr"),
        ({"max_lr": 1e-8}, "accepted is 0 < min_lr < max_lr"),
        ({"max_lr": math.inf}, "accepted is 0 < min_lr < max_lr"),
        ({"steps": 10}, "steps is 10, accepted is a whole number of at least 20"),
        ({"optimizer": "SGD"}, "optimizer is a str, accepted is a torch.optim.Optimizer"),
        ({"batches": []}, "batches ended after 0 of 100 steps, accepted is an iterable that"),
        ({"batches": iter(noisy(25))}, "batches ended after 25 of 100 steps, accepted is an iterable that starts anew"),
        ({"optimizer": torch.optim.SGD(Point().parameters())}, "holds none of the model's parameters, accepted is"),
        ({"min_lr": "low"}, "min_lr is 'low', max_lr is 10.0, accepted is 0 < min_lr < max_lr"),
        ({"loss": nn.CrossEntropyLoss()}, r"loss is a CrossEntropyLoss, accepted is a function loss\(model, batch\)"),
        ({"loss": 3}, r"loss is a int, accepted is a function loss\(model, batch\)"),
        ({"loss": lambda m, b: m.at}, r"loss returned a tensor of shape \(8,\), accepted is a scalar"),
        ({"loss": lambda m, b: m.at.sum().item()}, "loss returned float, accepted is a scalar tensor with a gradient"),
        ({"loss": lambda m, b: m.at.detach().sum()}, r"a tensor of shape \(\) without gradient, accepted is"),
    ],
)  # fmt: skip
def test_bad_arguments(change: dict[str, Any], message: str) -> None:
    model = Point()
    given = {"optimizer": torch.optim.SGD(model.parameters()), "batches": noisy(), "loss": parabola(1.0)} | change
    with pytest.raises(ValueError, match=message):
        ta.tune.find_lr(model, **given)
