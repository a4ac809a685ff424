"""plan: into how many workers, of how many threads each, to split the cores for a model; measured, not guessed."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchaccel import measure
from torchaccel.infer import cores
from torchaccel.infer.workers import Workers
from torchaccel.workflow.inputs import check_inputs

_LEAST_ROUNDS, _MOST_ROUNDS = 9, 51
_ROUND_S = 0.05  # the least that one candidate is timed for in a round
_LEAST_BATCHES = 4  # of each worker in a round, so that the end of a round, when workers idle, counts little


@dataclass(frozen=True)
class Split:
    """One way to share the cores, and what was measured of it."""

    workers: int
    threads: int
    processes: bool
    samples_per_s: float
    p50_ms: float  # from submit to outputs, as many batches in flight as workers
    p99_ms: float
    speedup: float  # in throughput, over one worker with all threads, paired
    low: float  # the speed-up's 95% interval
    high: float


@dataclass(frozen=True)
class Plan:
    """The measured splits, the plain one (one worker with all threads) first, and the best of them."""

    splits: tuple[Split, ...]
    best: Split
    _start: Callable[..., Workers]

    def start(self) -> Workers:
        """The model's workers as the best split has them."""
        return self._start(workers=self.best.workers, threads=self.best.threads, processes=self.best.processes)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"cores": cores.usable(), "best": asdict(self.best), "splits": [asdict(split) for split in self.splits]}

    def summary(self) -> str:
        """A table as text; * marks the best."""
        lines = ["  workers x threads     samples/s   p50 ms   p99 ms   speed-up (95% interval)"]
        for split in self.splits:
            name = f"{split.workers} x {split.threads} {'processes' if split.processes else 'threads'}"
            lines.append(
                f"{'*' if split is self.best else ' '} {name:<18} {split.samples_per_s:12.1f} {split.p50_ms:8.2f} "
                f"{split.p99_ms:8.2f}   {split.speedup:.2f}x ({split.low:.2f} to {split.high:.2f})"
            )
        return "\n".join(lines)


def plan(
    model: nn.Module | str | os.PathLike[str],
    inputs: tuple[Tensor, ...],
    model_fn: Callable[[], nn.Module] | None = None,
    *,
    processes: bool = False,
    pin: bool = True,
    budget_s: float = 2.0,
) -> Plan:
    """Measure how to split this process's cores among workers for the most throughput, on the model itself.

    Candidates are one worker with all threads, two with half of them each, and so on to one thread each. They are timed
    in turns, in rounds; another than the first is the best only if the lower end of the 95% interval of its speed-up
    over the first is above 1.

    Args:
        model: and `model_fn`, as `Workers` takes them.
        inputs: the model's inputs for one batch as it will come, the batch in the first dimension.
        processes: also measure worker processes, which take seconds to start and hold the model once each.
        pin: as for `Workers`.
        budget_s: seconds of timing for each candidate.

    Returns:
        The plan, whose `start()` makes the best Workers.

    Raises:
        ValueError: `inputs` is no tuple of tensors, or what `Workers` refuses.
        Exception: what the model raised on the inputs.
    """
    check_inputs(inputs)

    def start(**split: Any) -> Workers:
        return Workers(model, model_fn, pin=pin, **split)

    candidates = _candidates(cores.usable(), processes)
    with ExitStack() as stack:
        crews = [stack.enter_context(start(workers=w, threads=t, processes=p)) for w, t, p in candidates]
        for crew in crews:
            _run(crew, inputs, 2 * crew.workers, 2 * crew.workers)  # pack weights, map memory, start threads
        rates = _rates(crews, inputs, budget_s)
        latencies = [_latencies(crew, inputs, budget_s / 4) for crew in crews]
    samples = inputs[0].shape[0] if inputs[0].dim() else 1
    splits = []
    for candidate, rate, latency in zip(candidates, rates, latencies, strict=True):
        ratios = [own / plain for own, plain in zip(rate, rates[0], strict=True)]
        figures = statistics.median(rate) * samples, *latency, statistics.median(ratios)
        splits.append(Split(*candidate, *figures, *measure.median_interval(ratios)))
    faster = [split for split in splits[1:] if split.low > 1]
    best = max(faster, key=lambda split: split.samples_per_s, default=splits[0])
    return Plan(tuple(splits), best, start)


def _candidates(count: int, processes: bool) -> list[tuple[int, int, bool]]:
    """(workers, threads, processes): powers of two of workers, and one for each core."""
    workers = sorted({1 << i for i in range(count.bit_length()) if 1 << i <= count} | {count})
    kinds = (False, True) if processes else (False,)
    return [(w, count // w, kind) for kind in kinds for w in workers]


def _run(crew: Workers, inputs: tuple[Tensor, ...], batches: int, flight: int) -> list[float]:
    """Run batches, `flight` of them at once; the seconds of each from submit to outputs, or what one raised."""
    running: set[Future[Any]] = set()
    took: list[float] = []
    for _ in range(batches):
        if len(running) == flight:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
        begin = time.perf_counter()
        future = crew.submit((inputs,))
        future.add_done_callback(partial(_note, took, begin))
        running.add(future)
    for future in running:
        future.result()
    return took


def _note(took: list[float], begin: float, _: Future[Any]) -> None:
    took.append(time.perf_counter() - begin)


def _rates(crews: list[Workers], inputs: tuple[Tensor, ...], budget_s: float) -> list[list[float]]:
    """Batches a second of each crew, round by round; the order turns round from one to the next."""

    def timed(crew: Workers, batches: int) -> float:
        return batches / measure.seconds(lambda: _run(crew, inputs, batches, 2 * crew.workers))

    counts = [
        max(_LEAST_BATCHES * crew.workers, round(_ROUND_S * timed(crew, _LEAST_BATCHES * crew.workers)))
        for crew in crews
    ]
    rates: list[list[float]] = [[] for _ in crews]
    end = time.perf_counter() + budget_s * len(crews)
    done = 0
    while done < _LEAST_ROUNDS or (done < _MOST_ROUNDS and time.perf_counter() < end):
        for i in range(len(crews)) if done % 2 == 0 else reversed(range(len(crews))):
            rates[i].append(timed(crews[i], counts[i]))
        done += 1
    return rates


def _latencies(crew: Workers, inputs: tuple[Tensor, ...], budget_s: float) -> tuple[float, float]:
    """The median and the 99th percentile, in milliseconds, with no batch waiting for another."""
    took: list[float] = []
    end = time.perf_counter() + budget_s
    while len(took) < 20 or time.perf_counter() < end:
        took += _run(crew, inputs, 10 * crew.workers, crew.workers)
    p50, p99 = torch.tensor(took).quantile(torch.tensor([0.5, 0.99])).tolist()
    return p50 * 1e3, p99 * 1e3
