"""Throughput of `ta.infer.Workers` on a stream of batches, in turns with a plain loop and with a naive thread pool.

The network has random weights with settled BatchNorm, and is pruned by magnitude and int8, or with --eager as it is.
Baseline: a loop of `model(batch)` with all threads; the same loop with one thread stands beside it. The naive pool is a
ThreadPoolExecutor of as many threads as cores, each with as many intra-op threads, as torch has it by default. Medians,
with the 95% interval of the paired ratios.

    python -m benchmarks.bench_workers --model resnet18 --batches 1 8 --json FILE
    python -m benchmarks.bench_workers --model mobilenet_v2 --eager --size 32 --batches 1 16 --json FILE
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import torchaccel as ta
from torchaccel import measure
from torchaccel.infer.cores import usable

sys.path.insert(0, str(Path(__file__).parent))  # also where this runs as a module
from _common import environment
from models import MODELS, settled

Stream = Callable[[int], object]
LEAST_BATCHES = 8  # of each worker in a round


def loop(model: nn.Module, x: Tensor, threads: int) -> Stream:
    def run(count: int) -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        with torch.no_grad():
            for _ in range(count):
                model(x)
        torch.set_num_threads(before)

    return run


def naive(stack: ExitStack, model: nn.Module, x: Tensor, threads: int) -> Stream:
    pool = stack.enter_context(ThreadPoolExecutor(threads))

    def call(batch: Tensor) -> Any:
        with torch.no_grad():
            return model(batch)

    return lambda count: list(pool.map(call, [x] * count))


def crewed(workers: ta.infer.Workers, x: Tensor) -> Stream:
    return lambda count: [None for _ in workers.map(x for _ in range(count))]


def measured(streams: dict[str, Stream], cores: int, samples: int, budget_s: float) -> list[dict[str, Any]]:
    """A row for each stream: samples a second, and the ratio to the first."""
    counts = {}
    for name, stream in streams.items():
        stream(4 * cores)
        took = measure.seconds(lambda stream=stream: stream(4 * cores)) / (4 * cores)  # type: ignore[misc]
        counts[name] = max(LEAST_BATCHES * cores, round(0.3 / took))
    rates: dict[str, list[float]] = {name: [] for name in streams}
    rounds = max(9, round(budget_s / 0.3))
    for i in range(rounds):
        for name in list(streams) if i % 2 == 0 else reversed(list(streams)):
            count = counts[name]
            rates[name].append(samples * count / measure.seconds(lambda n=name, c=count: streams[n](c)))  # type: ignore
    plain = next(iter(rates.values()))
    rows = []
    for name, rate in rates.items():
        ratios = [own / base for own, base in zip(rate, plain, strict=True)]
        low, high = measure.median_interval(ratios)
        figures = {"samples_per_s": statistics.median(rate), "ratio": statistics.median(ratios)}
        rows.append({"batch": samples, "stream": name, **figures, "low": low, "high": high, "rounds": rounds})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="resnet18")
    parser.add_argument("--eager", action="store_true", help="float32, not optimized")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each stream and batch size")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    cores = usable()
    torch.set_num_threads(cores)
    model = settled(options.model, options.size)
    if not options.eager:
        inputs = (torch.randn(min(options.batches), 3, options.size, options.size),)
        model = ta.optimize(model, inputs, sparsity=ta.Sparsity("1x4", 0.9), int8=ta.Int8Static()).model
    splits = [(1, cores, False), (cores, 1, False), (1, cores, True), (cores, 1, True)]
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        crews = {
            f"{workers} x {threads} {'processes' if processes else 'threads'}": stack.enter_context(
                ta.infer.Workers(model, workers=workers, threads=threads, processes=processes)
            )
            for workers, threads, processes in splits
        }
        for size in options.batches:
            x = torch.randn(size, 3, options.size, options.size)
            streams = {"plain loop": loop(model, x, cores), "loop, 1 thread": loop(model, x, 1)}
            streams["naive pool"] = naive(stack, model, x, cores)
            streams |= {name: crewed(workers, x) for name, workers in crews.items()}
            rows += measured(streams, cores, size, options.seconds)
            for row in rows[-len(streams) :]:
                print(
                    f"batch {row['batch']:3}  {row['stream']:<16} {row['samples_per_s']:9.1f} samples/s  "
                    f"{row['ratio']:.2f}x ({row['low']:.2f} to {row['high']:.2f})",
                    flush=True,
                )
    if options.json:
        about = environment() | {"cores": cores, "model": options.model, "size": options.size, "eager": options.eager}
        options.json.write_text(json.dumps({"environment": about, "baseline": "plain loop", "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
