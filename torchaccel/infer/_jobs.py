"""Batches that wait for a worker, and who takes the next one."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class Job:
    """One batch, and who waits for what comes out."""

    inputs: tuple[Tensor, ...]
    future: Future[Any] = field(default_factory=Future)


class Jobs:
    """A queue from which a worker takes a batch only while no other worker has fewer.

    A worker process takes its next batch before it has finished one; it must not take what an idle one could run now.
    """

    def __init__(self, workers: int) -> None:
        self._waiting: deque[Job] = deque()
        self._loads = [0] * workers
        self._closed = False
        self._changed = threading.Condition()

    def put(self, job: Job) -> bool:
        """Add a batch; False when closed."""
        with self._changed:
            if not self._closed:
                self._waiting.append(job)
                self._changed.notify_all()
            return not self._closed

    def take(self, worker: int) -> Job | None:
        """Wait for a batch; None once the queue is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._may_take(worker) or (self._closed and not self._waiting))
            if not self._waiting:
                return None
            self._loads[worker] += 1
            job = self._waiting.popleft()
            self._changed.notify_all()
            return job

    def done(self, worker: int) -> None:
        """The worker has finished a batch."""
        with self._changed:
            self._loads[worker] -= 1
            self._changed.notify_all()

    def close(self, drop: bool) -> list[Job]:
        """Take no more batches; with `drop` those that wait are returned and not run."""
        with self._changed:
            self._closed = True
            dropped = list(self._waiting) if drop else []
            if drop:
                self._waiting.clear()
            self._changed.notify_all()
        return dropped

    def _may_take(self, worker: int) -> bool:
        return bool(self._waiting) and self._loads[worker] == min(self._loads)
