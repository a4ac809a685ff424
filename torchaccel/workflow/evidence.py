"""From what `optimize` measured to the report's data."""

from __future__ import annotations

import datetime
import platform
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchaccel import __version__
from torchaccel.compress import Removed, Sparsity, sparsity_of
from torchaccel.compress.removal import Widths, in_words, record_of
from torchaccel.graph.cache import machine
from torchaccel.graph.choose import Choice
from torchaccel.measure import Comparison
from torchaccel.report import Report
from torchaccel.workflow.benchmark import Benchmark, forms_table
from torchaccel.workflow.checkpoint import save


@dataclass(frozen=True)
class Evidence:
    """All that was measured for one result."""

    model: str
    original: nn.Module
    optimized: nn.Module
    forms: Benchmark
    trials: Comparison
    choices: list[Choice]
    accuracy: tuple[float | None, float | None]
    accuracy_passed: bool | None
    max_drop: float
    min_speedup: float
    notes: list[str]
    settings: dict[str, Any]
    device: torch.device
    removed: Removed | None = None
    widths: Widths = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Both gates; an accuracy that nobody could check does not fail."""
        return self.speed_passed and self.accuracy_passed is not False

    @property
    def speed_passed(self) -> bool:
        """The lower end of the interval reaches what was asked; without gain there is no reason to change a model."""
        return self.trials.low >= self.min_speedup


def settings(sparsity: Sparsity | None, int8: object) -> dict[str, Any]:
    """What `optimize` was asked for, in words and numbers."""
    return {
        "pattern": "none" if sparsity is None else sparsity.pattern,
        "amount": 0.0 if sparsity is None else sparsity.amount,
        "int8": "none" if int8 is None else type(int8).__name__,
    }


def size_bytes(model: nn.Module) -> int:
    """The size of the model's checkpoint on disk."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save(model, path)
        return path.stat().st_size


def environment(device: torch.device) -> dict[str, Any]:
    """The machine and the versions that a figure depends on."""
    facts = machine(device)
    return {
        "torchaccel": __version__,
        "torch": facts["torch"],
        "python": platform.python_version(),
        "cpu": machine(torch.device("cpu"))["device"],
        "isa": facts["isa"],
        "threads": facts["threads"],
        "device": device.type,
        "gpu": facts["device"] if device.type == "cuda" else None,
        "platform": platform.platform(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def build_report(evidence: Evidence) -> Report:
    """The report on what is returned: the optimized model if both gates passed, else the best dense form."""
    passed = evidence.passed
    batch, trials = evidence.forms.batch_size, evidence.trials
    best = evidence.forms.best

    def side(form: str, ms: float, accuracy: float | None, size: int) -> dict[str, Any]:
        return {
            "form": form,
            "latency_ms": ms,
            "throughput": batch / ms * 1e3,
            "accuracy": accuracy,
            "size_bytes": size,
        }

    baseline = side(best.name, trials.baseline_median_ms, evidence.accuracy[0], size_bytes(evidence.original))
    optimized = side("torchaccel", trials.candidate_median_ms, evidence.accuracy[1], size_bytes(evidence.optimized))
    notes = list(evidence.notes)
    if not passed:
        notes.append(_verdict(evidence))
    choices = [choice if passed else _gone_back(choice, evidence.original) for choice in evidence.choices]
    widths = evidence.widths if passed else record_of(evidence.original)
    return Report(
        {
            "model": evidence.model,
            "baseline": baseline,
            "optimized": optimized if passed else baseline,
            "batch_size": batch,
            "speedup": trials.speedup if passed else 1.0,
            "speedup_ci95": [trials.low, trials.high] if passed else [1.0, 1.0],
            "layers": [
                asdict(c) | ({"channels": in_words(widths[c.name])} if c.name in widths else {}) for c in choices
            ],
            "settings": evidence.settings,
            "environment": environment(evidence.device),
            "forms": forms_table(evidence.forms),
            "gates": {
                "max_drop": evidence.max_drop,
                "min_speedup": evidence.min_speedup,
                "accuracy_passed": evidence.accuracy_passed,
                "speed_passed": evidence.speed_passed,
                "notes": notes,
            },
            "trials": {"baseline_ms": list(trials.baseline_ms), "optimized_ms": list(trials.candidate_ms)},
            **({"removed": asdict(evidence.removed)} if passed and evidence.removed is not None else {}),
        }
    )


def _gone_back(choice: Choice, original: nn.Module) -> Choice:
    """A layer of the dense form, neither pruned nor quantized, that is returned in place of the optimized model."""
    # What the graph made a module of, a mean for one, is none in the original.
    weight = getattr(dict(original.named_modules()).get(choice.name), "weight", None)
    if isinstance(weight, torch.Tensor):
        choice = replace(choice, sparsity=sparsity_of(weight))
    if choice.chosen == "dense float":
        return choice
    reason = f"back to dense with the whole model, though {choice.reason}"
    return replace(choice, chosen="dense float", speedup=1.0, chosen_ms=choice.dense_ms, reason=reason)


def _verdict(evidence: Evidence) -> str:
    reasons = []
    if not evidence.speed_passed:
        reasons.append(
            f"its speed-up is {evidence.trials.speedup:.2f}x with a 95% interval from {evidence.trials.low:.2f}x, "
            f"asked was {evidence.min_speedup:g}x"
        )
    if evidence.accuracy_passed is False:
        before, after = evidence.accuracy
        reasons.append(f"evaluate fell from {before:.4f} to {after:.4f}, allowed was a drop of {evidence.max_drop:g}")
    returned = f"the best dense form ({evidence.forms.best.name}) is returned"
    return f"the optimized model was not taken: {'; '.join(reasons)}; {returned}"
