"""What `find_lr` returns: losses over learning rates, and the rate that follows from them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH = 0.03  # the smoothing Gaussian's standard deviation, as a share of all steps
_LAST = 5  # losses that tell whether it diverged
_LEAST = 3  # losses that tell where it started
_BELOW = 3.0  # of the rate with the lowest loss, this part is suggested
_CERTAIN = 3.5  # standard errors by which the loss must fall; the lowest of many averages falls by two of noise alone


@dataclass(frozen=True)
class LearningRates:
    """The losses of a learning-rate range test.

    The suggestion is a third of the rate at which the smoothed loss is lowest: below the rates at which training
    turns unstable, and above the slow ones. docs/tuning.md compares it with other rules.

    Attributes:
        rates: the learning rate of each step, ascending.
        losses: before each step; the last ones may be infinite or NaN, where the loss diverged.
        smoothed: the same, averaged over neighbouring steps by a Gaussian, without delay.
        suggestion: a rate to train with, or None where the losses support none.
        reason: where the suggestion comes from, or why there is none.
    """

    rates: tuple[float, ...] = field(repr=False)
    losses: tuple[float, ...] = field(repr=False)
    smoothed: tuple[float, ...] = field(repr=False)
    suggestion: float | None
    reason: str

    @classmethod
    def of(cls, rates: Sequence[float], losses: Sequence[float]) -> LearningRates:
        """Of all rates that were planned, and the losses of those that were reached."""
        reached = rates[: len(losses)]
        smoothed = _smooth(losses, len(rates))
        suggestion, reason = _suggest(rates, losses, smoothed)
        return cls(tuple(reached), tuple(losses), tuple(map(float, smoothed)), suggestion, reason)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; a loss that is not finite is None."""
        finite = [value if math.isfinite(value) else None for value in self.losses]
        return asdict(self) | {"losses": finite}

    def to_json(self, path: str | Path) -> None:
        """Write it as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")

    def summary(self) -> str:
        """A few lines of text."""
        lowest = int(np.argmin(self.smoothed))
        said = "none" if self.suggestion is None else f"{self.suggestion:.2g}"
        low = f"{self.smoothed[lowest]:.4g} at {self.rates[lowest]:.2g}"
        return (
            f"suggestion  {said}: {self.reason}\n"
            f"swept       {self.rates[0]:.2g} to {self.rates[-1]:.2g} in {len(self.rates)} steps\n"
            f"loss        {self.smoothed[0]:.4g} at first, lowest {low}"
        )

    def plot(self) -> Figure:
        """Loss over learning rate, with the suggestion, as a figure of matplotlib; `.savefig(path)` writes it.

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("LearningRates.plot: matplotlib is not installed: `pip install matplotlib`") from error
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot(xscale="log", xlabel="learning rate", ylabel="loss")
        axes.plot(self.rates, self.losses, color="0.75", linewidth=1, label="each step")
        axes.plot(self.rates, self.smoothed, color="C0", linewidth=2, label="smoothed")
        if self.suggestion is not None:
            axes.axvline(self.suggestion, color="C3", linestyle="--", label=f"suggestion {self.suggestion:.2g}")
        low = min(loss for loss in (*self.losses, *self.smoothed) if math.isfinite(loss))
        high = max(self.smoothed)
        margin = 0.1 * (high - low) or 1.0
        axes.set_ylim(low - margin, high + margin)
        axes.legend(frameon=False)
        return figure


def diverged(losses: Sequence[float], steps: int) -> bool:
    """Whether the loss is not finite, or the last few are four times the lowest average, and above the first."""
    if not math.isfinite(losses[-1]):
        return True
    return bool(np.median(losses[-_LAST:]) > _limit(_smooth(losses, steps)))


def _limit(values: np.ndarray) -> float:
    lowest = float(values.min())
    return max(lowest + 3 * abs(lowest), float(values[0]))


@lru_cache(maxsize=1)  # asked for after each step
def _gaussian(steps: int) -> np.ndarray:
    """[steps, steps]: how much each step counts to the average at another."""
    at = np.arange(steps)
    return np.exp(-0.5 * ((at[:, None] - at) / max(_WIDTH * steps, 1.0)) ** 2)


def _weights(count: int, steps: int) -> np.ndarray:
    """[count, count]: of the neighbours that each average takes, on both sides, adding up to 1."""
    weights = _gaussian(steps)[:count, :count]
    return weights / weights.sum(1, keepdims=True)


def _bounded(losses: Sequence[float]) -> np.ndarray:
    """A loss beyond all bounds counts as the bound."""
    found = np.array(losses, dtype=np.float64)
    finite = found[np.isfinite(found)]
    return np.minimum(np.nan_to_num(found, nan=math.inf), _limit(finite)) if finite.size else np.zeros_like(found)


def _smooth(losses: Sequence[float], steps: int) -> np.ndarray:
    return _weights(len(losses), steps) @ _bounded(losses)


def _suggest(rates: Sequence[float], losses: Sequence[float], smoothed: np.ndarray) -> tuple[float | None, str]:
    if not math.isfinite(losses[0]):
        return None, f"the loss is {losses[0]} before the first step"
    values, lowest = _bounded(losses), int(np.argmin(smoothed))
    if lowest < 2 * _LEAST or rates[lowest] / _BELOW < rates[0]:
        return None, (
            f"the loss did not fall; it is lowest at the first rates, {rates[lowest]:.2g}: try a smaller min_lr; or "
            "there is little left to learn"
        )
    start = values[: lowest // 2]  # where rates are too small to matter
    fall = float(start.mean() - smoothed[lowest])
    error = math.sqrt(start.var(ddof=1) / len(start) + _variance_of_average(values, lowest, len(rates)))
    if fall <= max(_CERTAIN * error, 1e-6 * abs(float(start.mean()))):
        ended = f"diverged at {rates[len(losses) - 1]:.2g}" if len(losses) < len(rates) else f"up to {rates[-1]:.2g}"
        return None, (
            f"the loss did not fall beyond its noise ({start.mean():.4g} at first, {smoothed[lowest]:.4g} at its "
            f"lowest, standard error {error:.2g}; {ended}): try more steps or larger batches; or there is little left "
            "to learn"
        )
    found = f"a third of {rates[lowest]:.2g}, where the loss is lowest"
    if len(losses) == len(rates) and lowest >= len(rates) * (1 - _WIDTH) - 1:
        found += "; it still falls at max_lr, so that a larger one may suggest more"
    return rates[lowest] / _BELOW, found


def _variance_of_average(values: np.ndarray, at: int, steps: int) -> float:
    """Of the smoothed value at a step, from how its neighbours scatter."""
    weights = _weights(len(values), steps)[at]
    taken = float((weights**2).sum())  # 1 / the number of neighbours that count
    scatter = float(weights @ (values - weights @ values) ** 2) / max(1 - taken, 1e-9)
    return scatter * taken
