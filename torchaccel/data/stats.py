"""Whether the loader or the model is the bottleneck, from how long each waited for the other."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

_UNNOTICED = 0.02  # share of the time


@dataclass(frozen=True)
class Stats:
    """What a loader measured since it was made, or since `reset`; times are in seconds.

    Attributes:
        batches, samples: that were delivered.
        failed: samples that were not; each is among the loader's `faults`.
        seconds: of iterating, from asking for each first batch to having each last one.
        wait: of the consumer for a batch that was not ready.
        first: from the start of the latest iteration to its first batch.
        stages: of all threads: "read", "decode", "resize" (with normalizing and collating), and "idle", when every
            slot was full or the epoch's work was done. Samples that Python reads count as "read" as a whole.
        ready: batches that lay ready when one was asked for, on average.
        slots: that batches lie in, at most.
    """

    batches: int
    samples: int
    failed: int
    seconds: float
    wait: float
    first: float
    stages: dict[str, float]
    ready: float
    slots: int

    @property
    def wait_share(self) -> float:
        """The share of the time for which the consumer waited, 0..1."""
        return self.wait / self.seconds if self.seconds > 0 else 0.0

    @property
    def verdict(self) -> str:
        """One line: who waited for whom, and for which stage."""
        if not self.batches:
            return "nothing was loaded yet"
        busy = {name: seconds for name, seconds in self.stages.items() if name != "idle"}
        total = sum(busy.values())
        idle = self.stages.get("idle", 0.0) / max(total + self.stages.get("idle", 0.0), 1e-9)
        if self.wait_share < _UNNOTICED:
            return (
                f"model-bound: it waited {self.wait_share:.1%} of the time, the loader's threads were idle {idle:.0%}"
            )
        stage = max(busy, key=lambda name: busy[name])
        return f"loader-bound {self.wait_share:.0%}: {stage} takes {busy[stage] / max(total, 1e-9):.0%} of its work"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"wait_share": self.wait_share, "verdict": self.verdict}

    def write(self, writer: Any, step: int) -> None:
        """Add the figures to TensorBoard, as `loader/...`.

        Args:
            writer: a torch.utils.tensorboard.SummaryWriter.
            step: of the curves.
        """
        total = sum(self.stages.values())
        curves = {"wait_share": self.wait_share, "ready": self.ready, "failed": float(self.failed)}
        if self.seconds > 0:
            curves["samples_per_second"] = self.samples / self.seconds
        curves |= {f"stage/{name}": seconds / total for name, seconds in self.stages.items() if total > 0}
        for name, value in curves.items():
            writer.add_scalar(f"loader/{name}", value, step)


class Clock:
    """Collects what `Stats` tells."""

    def __init__(self) -> None:
        self.batches = self.samples = self.failed = self.ready = self.asked = 0
        self.seconds = self.wait = self.first = 0.0

    def stats(self, stages: dict[str, float], slots: int) -> Stats:
        """The figures so far."""
        ready = self.ready / self.asked if self.asked else 0.0
        return Stats(self.batches, self.samples, self.failed, self.seconds, self.wait, self.first, stages, ready, slots)
