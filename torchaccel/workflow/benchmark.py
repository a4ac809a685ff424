"""ta.benchmark: how fast a model's dense forms are, in turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchaccel import measure
from torchaccel.compress.calibrate import evaluating
from torchaccel.workflow.forms import Form, dense_forms
from torchaccel.workflow.inputs import check_inputs


@dataclass(frozen=True)
class Benchmark:
    """Median milliseconds of one batch for each dense form, and why other forms did not run."""

    batch_size: int
    latency_ms: dict[str, float]
    failed: dict[str, str]
    best: Form
    notes: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "batch_size": self.batch_size,
            "threads": torch.get_num_threads(),
            "best": self.best.name,
            "forms": forms_table(self),
        }

    def summary(self) -> str:
        """A few lines of text."""
        width = max(map(len, (*self.latency_ms, *self.failed)))
        lines = [
            f"{name:<{width}}  {ms:9.3f} ms  {self.batch_size / ms * 1e3:10.1f} samples/s"
            for name, ms in sorted(self.latency_ms.items(), key=lambda item: item[1])
        ]
        return "\n".join([*lines, *(f"{name:<{width}}  did not run: {why}" for name, why in self.failed.items())])


def forms_table(result: Benchmark) -> list[dict[str, Any]]:
    """One row a form, for the report."""
    ran = [{"form": name, "latency_ms": ms, "note": result.notes[name]} for name, ms in result.latency_ms.items()]
    return ran + [{"form": name, "latency_ms": None, "note": why} for name, why in result.failed.items()]


def benchmark(model: nn.Module, inputs: tuple[Tensor, ...], budget_s: float = 2.0) -> Benchmark:
    """Time the dense forms of a model (eager, channels_last, frozen torch.compile; on CUDA half types too) in turns.

    Args:
        model: any module; run in eval mode, left as it was.
        inputs: a tuple of tensors, the batch in the first dimension.
        budget_s: seconds of timing for each form.

    Raises:
        ValueError: `inputs` is no tuple of tensors, or empty.
    """
    check_inputs(inputs)
    return time_forms(model, inputs, budget_s)


def time_forms(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    budget_s: float = 2.0,
    beside: Sequence[Form] = (),
    refuse: Callable[[Form], str | None] | None = None,
) -> Benchmark:
    """`benchmark` with more forms timed beside the dense ones, in the same turns; those never count as the best.

    `refuse` is asked for the fastest form, then the next: why it may not be the best, or None. Eager always may.
    """
    with evaluating(model):
        forms, failed = dense_forms(model, inputs)
        timed = [*forms, *beside]
        times = measure.interleaved_ms([partial(form.model, *inputs) for form in timed], budget_s)
    latency = {form.name: ms for form, ms in zip(timed, times, strict=True)}
    notes = {form.name: form.note for form in timed}
    for best in sorted(forms, key=lambda form: latency[form.name]):
        reason = None if refuse is None or best.name == "eager" else refuse(best)
        if reason is None:
            break
        notes[best.name] = reason
    return Benchmark(inputs[0].shape[0] if inputs[0].dim() else 1, latency, failed, best, notes)
