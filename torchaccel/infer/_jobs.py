"""Batches that wait for a worker, and who takes the next one."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from torch import Tensor


@dataclass
class Job:
    """One batch, and who waits for what comes out."""

    inputs: tuple[Tensor, ...]
    future: Future[Any] = field(default_factory=Future)


class Jobs:
    """A queue that gives a batch to the worker with the fewest, of those that can take one.

    A worker process takes its next batch before it has finished one; it must not take what an idle one could run now.
    Batches wait only while no lane of any worker is idle, so that one thread wakes up for each batch.
    """

    def __init__(self, workers: int) -> None:
        self._waiting: deque[Job] = deque()
        self._idle: list[list[SimpleQueue[Job | None]]] = [[] for _ in range(workers)]  # lanes that wait, by worker
        self._loads = [0] * workers
        self._closed = False
        self._lock = threading.Lock()

    def put(self, job: Job) -> bool:
        """Add a batch; False when closed."""
        with self._lock:
            if self._closed:
                return False
            ready = [worker for worker, lanes in enumerate(self._idle) if lanes]
            if ready:
                worker = min(ready, key=self._loads.__getitem__)
                self._loads[worker] += 1
                self._idle[worker].pop().put(job)
            else:
                self._waiting.append(job)
            return True

    def enter(self, worker: int) -> SimpleQueue[Job | None]:
        """Where one lane of a worker, idle from now on, gets its first batch."""
        with self._lock:
            return self._idle_lane(worker)

    def take(self, worker: int) -> Job | None:
        """Wait for a batch for one lane of a worker; None once the queue is closed and empty."""
        with self._lock:
            if self._waiting:
                self._loads[worker] += 1
                return self._waiting.popleft()
            if self._closed:
                return None
            given = self._idle_lane(worker)
        return given.get()

    def done(self, worker: int) -> None:
        """The worker has finished a batch."""
        with self._lock:
            self._loads[worker] -= 1

    def close(self, drop: bool) -> list[Job]:
        """Take no more batches; with `drop` those that wait are returned and not run."""
        with self._lock:
            self._closed = True
            dropped = list(self._waiting) if drop else []
            if drop:
                self._waiting.clear()
            for lanes in self._idle:
                while lanes:
                    lanes.pop().put(None)
        return dropped

    def _idle_lane(self, worker: int) -> SimpleQueue[Job | None]:
        given: SimpleQueue[Job | None] = SimpleQueue()
        self._idle[worker].append(given)
        return given
