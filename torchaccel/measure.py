"""Timing: medians, and paired, interleaved comparisons with an interval. A leaf: it imports nothing of the package."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Step = Callable[[], object]


def inference() -> Any:
    """The context in which models are timed: no gradients are recorded."""
    return torch.no_grad()


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(step: Step, repeats: int = 1) -> float:
    """Wall time of one call in seconds, the mean of `repeats` calls in a row; the device is idle before and after."""
    _settle()
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    _settle()
    return (time.perf_counter() - start) / repeats


def replayed(step: Step, device: torch.device) -> Step:
    """`step` as the replay of a CUDA graph: a layer is timed as it runs in a captured model, without its launches.

    On a CPU, and where it cannot be captured, the step itself.
    """
    if device.type != "cuda":
        return step
    try:
        with torch.cuda.device(device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                step()
            torch.cuda.current_stream().wait_stream(side)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                step()
    except Exception:  # whatever the step cannot do while it is captured; if it cannot run at all, timing it raises
        return step
    return graph.replay


@dataclass(frozen=True)
class Comparison:
    """How much faster `candidate` is than `baseline`: the median of paired ratios, and its 95% interval."""

    speedup: float
    low: float
    high: float
    baseline_ms: tuple[float, ...]
    candidate_ms: tuple[float, ...]

    @property
    def baseline_median_ms(self) -> float:
        return statistics.median(self.baseline_ms)

    @property
    def candidate_median_ms(self) -> float:
        return statistics.median(self.candidate_ms)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """A 95% interval of the median from order statistics, the sign test inverted; it assumes no distribution."""
    ordered = sorted(values)
    n = len(ordered)
    # The largest k with P(Binomial(n, 1/2) <= k) <= 2.5%; without one the interval is the whole range.
    tail, k = 0.0, -1
    for i in range(n):
        tail += math.comb(n, i) / 2**n
        if tail > 0.025:
            break
        k = i
    return ordered[max(k, 0)], ordered[n - 1 - max(k, 0)]


def _repeats(step: Step, least_seconds: float) -> int:
    """How many calls in a row fill `least_seconds`, so that the clock and the call's own cost do not count."""
    step()
    once = min(seconds(step) for _ in range(2))
    return max(1, math.ceil(least_seconds / max(once, 1e-7)))


def compare(
    baseline: Step, candidate: Step, budget_s: float = 1.0, min_pairs: int = 9, max_pairs: int = 101
) -> Comparison:
    """Time two steps in turns, alternating which goes first, for about `budget_s` seconds.

    Short steps are repeated within a sample, so that each sample takes a millisecond or more.
    """
    repeats = (_repeats(baseline, 1e-3), _repeats(candidate, 1e-3))
    steps = (baseline, candidate)
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + budget_s
    pair = 0
    while pair < min_pairs or (pair < max_pairs and time.perf_counter() < end):
        for which in (0, 1) if pair % 2 == 0 else (1, 0):
            times[which].append(seconds(steps[which], repeats[which]) * 1e3)
        pair += 1
    ratios = [b / c for b, c in zip(*times, strict=True)]
    low, high = median_interval(ratios)
    return Comparison(statistics.median(ratios), low, high, tuple(times[0]), tuple(times[1]))


def settled(baseline: Step, candidate: Step, budget_s: float) -> Comparison:
    """Compare, and again for longer while the interval holds 1: a busy machine must not decide."""
    result = compare(baseline, candidate, budget_s=budget_s)
    for longer in (2, 4):
        if result.low > 1 or result.high < 1:
            break
        result = compare(baseline, candidate, budget_s=longer * budget_s)
    return result


def interleaved_ms(
    steps: Sequence[Step], budget_s: float = 1.0, min_rounds: int = 5, max_rounds: int = 51
) -> list[float]:
    """The median milliseconds of each step, timed in turns."""
    repeats = [_repeats(step, 1e-3) for step in steps]
    times: list[list[float]] = [[] for _ in steps]
    end = time.perf_counter() + budget_s * len(steps)
    done = 0
    while done < min_rounds or (done < max_rounds and time.perf_counter() < end):
        for step, repeat, samples in zip(steps, repeats, times, strict=True):
            samples.append(seconds(step, repeat) * 1e3)
        done += 1
    return [statistics.median(samples) for samples in times]
