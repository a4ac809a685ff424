"""find_batch_size: which batch size is fast enough, measured."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchaccel import measure
from torchaccel.tune._kept import kept, modes_kept
from torchaccel.tune._memory import Meter, free, ran_out
from torchaccel.tune._training import Loss, check_model, check_training, train_step
from torchaccel.tune.sizes import BatchSizes, Row

Step = Callable[[], object]

_FLAT = 4  # sizes in a row, two doublings, that bring less than _GAIN more samples a second: no larger ones are tried
_GAIN = 1.02
_SHARE = 0.9  # of the free memory may be taken
_ROUNDS = (5, 25)
# A model behind CUDA graphs captures a shape anew when it has come that often.
_SIGHTINGS = {"cuda": 40}


def find_batch_size(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    *,
    loss: Loss | None = None,
    optimizer: Optimizer | None = None,
    max_latency_ms: float | None = None,
    max_batch_size: int = 1024,
    budget_s: float = 10.0,
) -> BatchSizes:
    """Time a model at growing batch sizes, in turns, with the memory each takes; propose the smallest that is fast.

    Sizes are 1, 2, 3, 4, 6, 8, 12 and so on. They end where four in a row bring less than 2% more samples a second,
    where memory would not suffice, where the model raises, or at a limit. The proposal is the smallest size that
    reaches 95% of the best samples a second: a larger one costs latency and memory and brings next to nothing.

    Args:
        model: for inference, in evaluation mode meanwhile; or for training, with `loss` and `optimizer`. All of it is
            put back afterwards, also after an exception.
        example_inputs: tensors [N, ...], repeated to each size: the inputs, or for training what `loss` takes as a
            batch, such as `(images, labels)`.
        loss: `loss(model, batch) -> Tensor`, a scalar; with it a step is forward, backward and `optimizer.step()`.
        optimizer: of the model's parameters; its learning rates are 0 meanwhile.
        max_latency_ms: how long a batch may take, in milliseconds; None for no limit.
        max_batch_size: the largest size to try.
        budget_s: seconds of timing in turns, at least five rounds.

    Returns:
        BatchSizes: a row for each size, and a `suggestion`, or the reason why there is none.

    Raises:
        ValueError: an argument that is not as described, or a model that takes no size up to N.

    Equivalent to timing `model(*(x.repeat(...) for x in example_inputs))` for each size.
    """
    _check(model, example_inputs, loss, optimizer)
    _check_limits(max_latency_ms, max_batch_size, budget_s)
    training = loss is not None and optimizer is not None
    device = example_inputs[0].device
    with _training(model, optimizer) if optimizer is not None else _inference(model):

        def step_of(size: int) -> Step:
            batch = _batch(example_inputs, size)
            if loss is None or optimizer is None:
                return lambda: model(*batch)
            return lambda: train_step(model, optimizer, loss, batch)

        tried, ended = _explored(step_of, example_inputs[0].shape[0], device, max_latency_ms, max_batch_size)
        times = _timed({size: step_of(size) for size in tried}, budget_s, device)
    rows = [Row.of(size, times[size], tried[size]) for size in tried]
    return BatchSizes.of(rows, ended, max_latency_ms, training, device)


def _explored(
    step_of: Callable[[int], Step], given: int, device: torch.device, max_latency_ms: float | None, max_batch_size: int
) -> tuple[dict[int, int | None], str]:
    """The sizes that are worth timing, with the memory that each takes, and why there are no larger ones."""
    available, meter = free(device), Meter(device)
    peaks: dict[int, int | None] = {}
    rates: list[float] = []
    refused: ValueError | None = None
    for size in _sizes(max_batch_size):
        if (needed := _expected(peaks, size)) is not None and available is not None and needed > _SHARE * available:
            return peaks, f"{size} would take about {needed >> 20} MiB of memory; {available >> 20} MiB are free"
        try:
            step = step_of(size)
            peak = meter.peak(step)
            taken = min(measure.seconds(step) for _ in range(2))
        except Exception as error:
            if not ran_out(error):
                said = f"a batch of {size} raised {type(error).__name__}: {error}"
                if peaks:
                    return peaks, said
                refused = ValueError(f"find_batch_size: {said}")
                refused.__cause__ = error
                if size < given:
                    continue  # as a BatchNorm that trains refuses a single value
                raise refused from error
            if device.type == "cuda":
                torch.cuda.empty_cache()
            return peaks, f"memory did not suffice for {size}"
        peaks[size] = peak
        rates.append(size / taken)
        if max_latency_ms is not None and taken * 1e3 > 1.2 * max_latency_ms:
            return peaks, f"{size} takes longer than {max_latency_ms:g} ms"
        if len(rates) > _FLAT and max(rates[-_FLAT:]) < _GAIN * max(rates[:-_FLAT]):
            return peaks, "larger ones bring no more samples a second"
    if refused is not None and not peaks:
        raise refused
    return peaks, f"{max_batch_size} is the largest that was asked for"


def _sizes(largest: int) -> Iterator[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, ..."""
    size = 1
    while size <= largest:
        yield size
        if size > 1 and size * 3 // 2 <= largest:
            yield size * 3 // 2
        size *= 2


def _expected(peaks: dict[int, int | None], size: int) -> int | None:
    """The memory that a size will take if it grows as before."""
    if len(peaks) < 2:
        return None
    (small, before), (large, last) = list(peaks.items())[-2:]
    if before is None or last is None:
        return None
    return last + max(last - before, 0) * (size - large) // (large - small)


def _timed(steps: dict[int, Step], budget_s: float, device: torch.device) -> dict[int, float]:
    """The median seconds of each step, timed in turns."""
    samples: dict[int, list[float]] = {size: [] for size in steps}
    end = time.perf_counter() + budget_s
    for done in range(_ROUNDS[1]):
        if done >= _ROUNDS[0] and time.perf_counter() > end:
            break
        for size, step in steps.items():
            for _ in range(_SIGHTINGS.get(device.type, 0)):
                step()
            once = measure.seconds(step)
            repeats = min(max(1, round(2e-3 / once)), 100)
            samples[size].append(measure.seconds(step, repeats))
    return {size: median(found) for size, found in samples.items()}


def _batch(inputs: tuple[Tensor, ...], size: int) -> tuple[Tensor, ...]:
    """The inputs, each [N, ...], repeated to [size, ...]."""
    chosen = torch.arange(size, device=inputs[0].device) % inputs[0].shape[0]
    return tuple(x.detach().index_select(0, chosen.to(x.device)) for x in inputs)


@contextmanager
def _training(model: nn.Module, optimizer: Optimizer) -> Iterator[None]:
    with kept(model, optimizer):
        if not model.training:
            model.train()
        for group in optimizer.param_groups:
            group["lr"] = torch.zeros_like(group["lr"]) if isinstance(group["lr"], Tensor) else 0.0
        yield


@contextmanager
def _inference(model: nn.Module) -> Iterator[None]:
    with modes_kept(model), torch.no_grad():
        model.eval()
        yield


def _check(model: object, inputs: object, loss: object, optimizer: object) -> None:
    check_model("find_batch_size", model)
    if not isinstance(inputs, tuple) or not inputs or not all(isinstance(x, Tensor) and x.dim() for x in inputs):
        raise ValueError("find_batch_size: example_inputs: accepted is a tuple of tensors [N, ...], such as (x,)")
    if len({x.shape[0] for x in inputs}) > 1 or not inputs[0].shape[0]:
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise ValueError(
            f"find_batch_size: example_inputs have the shapes {shapes}, accepted is the same N >= 1 in all"
        )
    if (loss is None) != (optimizer is None):
        given = "loss" if optimizer is None else "optimizer"
        raise ValueError(f"find_batch_size: {given} is given alone, accepted are loss and optimizer, or neither")
    if optimizer is not None:
        check_training("find_batch_size", model, optimizer, loss)


def _check_limits(max_latency_ms: object, max_batch_size: object, budget_s: object) -> None:
    if max_latency_ms is not None and not (isinstance(max_latency_ms, int | float) and max_latency_ms > 0):
        raise ValueError(f"find_batch_size: max_latency_ms is {max_latency_ms!r}, accepted is above 0, or None")
    if not isinstance(budget_s, int | float) or not 0 <= budget_s < math.inf:
        raise ValueError(f"find_batch_size: budget_s is {budget_s!r}, accepted are seconds from 0")
    if not isinstance(max_batch_size, int) or isinstance(max_batch_size, bool) or max_batch_size < 1:
        raise ValueError(f"find_batch_size: max_batch_size is {max_batch_size!r}, accepted is at least 1")
