"""What `find_batch_size` returns: a row for each batch size, and the size that follows from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

_ENOUGH = 0.95  # of the best samples a second


@dataclass(frozen=True)
class Row:
    """One batch size.

    Attributes:
        batch_size: samples a batch.
        ms: the median time of a batch, in milliseconds.
        samples_per_s: samples a second.
        memory_mb: what the batch takes at most beyond what was taken before, in 10^6 bytes; None where nobody tells.
    """

    batch_size: int
    ms: float
    samples_per_s: float
    memory_mb: float | None

    @classmethod
    def of(cls, batch_size: int, seconds: float, memory: int | None) -> Row:
        return cls(batch_size, seconds * 1e3, batch_size / seconds, None if memory is None else memory / 1e6)


@dataclass(frozen=True)
class BatchSizes:
    """What each batch size costs and brings.

    Attributes:
        rows: by batch size, ascending.
        suggestion: the smallest size with 95% of the best samples a second within the limits, or None where no size is.
        reason: why this one, or why none.
        ended: why no larger sizes were tried.
        training: whether steps of training were timed, or inference.
        device, threads: what it was measured on.
    """

    rows: tuple[Row, ...]
    suggestion: int | None
    reason: str
    ended: str
    training: bool
    device: str
    threads: int

    @classmethod
    def of(
        cls, rows: Sequence[Row], ended: str, max_latency_ms: float | None, training: bool, device: torch.device
    ) -> BatchSizes:
        """Choose among rows."""
        suggestion, reason = _suggest(rows, max_latency_ms, ended)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        return cls(tuple(rows), suggestion, reason, ended, training, name, torch.get_num_threads())

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def to_json(self, path: str | Path) -> None:
        """Write it as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")

    def summary(self) -> str:
        """A table, and what to take."""
        what = "training" if self.training else "inference"
        place = f"{self.threads} threads" if self.device == "cpu" else self.device
        lines = [f"{what} on {place}", f"{'batch':>7}  {'ms':>10}  {'samples/s':>10}  {'memory MB':>10}"]
        for row in self.rows:
            memory = "-" if row.memory_mb is None else f"{row.memory_mb:.1f}"
            mark = "  <- suggestion" if row.batch_size == self.suggestion else ""
            lines.append(f"{row.batch_size:>7}  {row.ms:>10.3f}  {row.samples_per_s:>10.1f}  {memory:>10}{mark}")
        said = "none" if self.suggestion is None else str(self.suggestion)
        return "\n".join([*lines, f"suggestion  {said}: {self.reason}", f"ended       {self.ended}"])


def _suggest(rows: Sequence[Row], max_latency_ms: float | None, ended: str) -> tuple[int | None, str]:
    allowed = [row for row in rows if max_latency_ms is None or row.ms <= max_latency_ms]
    if not allowed:
        return None, f"one sample takes {rows[0].ms:.3g} ms, more than {max_latency_ms:g} ms" if rows else ended
    best = max(row.samples_per_s for row in allowed)
    chosen = next(row for row in allowed if row.samples_per_s >= _ENOUGH * best)
    within = "" if max_latency_ms is None else f" within {max_latency_ms:g} ms"
    return chosen.batch_size, f"the smallest with {_ENOUGH:.0%} of the best samples a second{within} ({best:.1f})"
