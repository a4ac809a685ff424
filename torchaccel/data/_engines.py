"""Who fills batches: csrc/data's own threads, or Python threads where Python code reads the samples."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from torchaccel import _native

_FAREWELL = 0.3  # seconds that threads get to end
_PATIENCE = 0.02  # seconds between two looks for Ctrl-C and for reads that take too long


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class Outcome:
    """A batch that is done: positions that failed, with their reasons, and what Python code returned for each."""

    failures: list[tuple[int, str]]
    results: list[Any] | None = None


class Engine(Protocol):
    """Fills batches in the order in which they were submitted."""

    def submit(self, indices: np.ndarray, epoch: int, out: np.ndarray | None) -> int:
        """Ask for a batch; returns its ticket. `out` is [len(indices), ...]."""

    def wait(self, ticket: int) -> None:
        """Return when the batch is done."""

    def done(self, ticket: int) -> bool: ...

    def take(self, ticket: int) -> Outcome: ...

    def cancel(self) -> None:
        """Forget all batches; nothing is written to their memory any more when this returns."""

    def stages(self) -> dict[str, float]:
        """Seconds of thread time by stage; "idle" is what threads had nothing to do."""

    def close(self) -> None: ...


class NativeEngine:
    """csrc/data's threads, on a source that it reads by itself."""

    def __init__(self, source: Any, recipe: Any, seed: int, threads: int, timeout: float | None) -> None:
        module, reason = _native.data()
        if module is None:
            raise RuntimeError(f"csrc/data is not there: {reason}")
        self._pool = module.Pool(threads)
        self._source, self._recipe, self._seed, self._timeout = source, recipe, seed, timeout
        self._names: dict[int, np.ndarray] = {}

    def submit(self, indices: np.ndarray, epoch: int, out: np.ndarray | None) -> int:
        items = self._source.items(indices)
        ticket = self._pool.submit(self._recipe, items, indices.tolist(), self._seed, epoch, out)
        self._names[ticket] = indices
        return ticket

    def wait(self, ticket: int) -> None:
        if self._pool.wait(ticket, -1.0 if self._timeout is None else self._timeout):
            return
        late = [int(self._names[ticket][position]) for position in self._pool.unfinished(ticket)]
        named = ", ".join(f"{i} ({self._source.name(i)})" for i in late[:4])
        raise TimeoutError(f"Loader: after {self._timeout} s these samples are not there: {named}")

    def done(self, ticket: int) -> bool:
        return self._pool.done(ticket)

    def take(self, ticket: int) -> Outcome:
        del self._names[ticket]
        return Outcome(self._pool.take(ticket))

    def cancel(self) -> None:
        self._pool.cancel()
        self._names.clear()

    def stages(self) -> dict[str, float]:
        found = self._pool.stats()
        return {name: found[name] for name in ("read", "decode", "resize", "idle")}

    def close(self) -> None:
        self._pool.close()


# (index, epoch, out, position, claim) -> result. It reads, calls claim(), and only then writes to out[position].
Work = Callable[[int, int, np.ndarray | None, int, Callable[[], None]], Any]


class AbandonedError(Exception):
    """The sample is no longer wanted: its read took too long, or its batch was cancelled."""


@dataclass
class _Batch:
    indices: np.ndarray
    epoch: int
    out: np.ndarray | None
    left: int
    results: list[Any]
    failures: list[tuple[int, str]] = field(default_factory=list)
    settled: set[int] = field(default_factory=set)  # positions that are done, failed or abandoned
    writing: int = 0


class ThreadEngine:
    """Python threads that each do `work` for one sample after another."""

    def __init__(self, work: Work, threads: int, timeout: float | None) -> None:
        self._work, self._timeout = work, timeout
        self._lock = threading.Condition()
        self._tasks: queue.SimpleQueue[tuple[_Batch, int] | None] = queue.SimpleQueue()
        self._batches: dict[int, _Batch] = {}
        self._next = 0
        self._process = os.getpid()
        self._seconds = {"read": 0.0, "idle": 0.0}
        self._threads: list[threading.Thread] = []
        # What each thread is reading, since when; a thread whose read takes too long is replaced, and ends after it.
        self._reading: dict[threading.Thread, tuple[_Batch, int, float]] = {}
        self._replaced: set[threading.Thread] = set()
        for _ in range(threads):
            self._start_thread()

    def _start_thread(self) -> None:
        # Daemons: a read that hangs must not keep the process alive.
        thread = threading.Thread(target=self._run, name="torchaccel-loader", daemon=True)
        self._threads.append(thread)
        thread.start()

    def submit(self, indices: np.ndarray, epoch: int, out: np.ndarray | None) -> int:
        batch = _Batch(indices, epoch, out, len(indices), [None] * len(indices))
        with self._lock:
            ticket, self._next = self._next, self._next + 1
            self._batches[ticket] = batch
        for position in range(len(indices)):
            self._tasks.put((batch, position))
        return ticket

    def wait(self, ticket: int) -> None:
        batch = self._batches[ticket]
        with self._lock:
            while batch.left:
                self._lock.wait(_PATIENCE)
                if self._timeout is not None:
                    self._abandon_late(time.monotonic() - self._timeout)

    def _abandon_late(self, before: float) -> None:
        for thread, (batch, position, since) in list(self._reading.items()):
            if since < before:
                del self._reading[thread]
                self._replaced.add(thread)
                self._threads.remove(thread)
                self._start_thread()
                if position not in batch.settled:
                    self._settle(batch, position, f"the read took longer than {self._timeout} s")

    def _settle(self, batch: _Batch, position: int, reason: str | None) -> None:
        batch.settled.add(position)
        batch.left -= 1
        if reason is not None:
            batch.failures.append((position, reason))
        self._lock.notify_all()

    def done(self, ticket: int) -> bool:
        return self._batches[ticket].left == 0

    def take(self, ticket: int) -> Outcome:
        with self._lock:
            batch = self._batches.pop(ticket)
        return Outcome(sorted(batch.failures), batch.results)

    def cancel(self) -> None:
        with self._lock:
            batches = list(self._batches.values())
            self._batches.clear()
            for batch in batches:
                batch.settled.update(range(len(batch.indices)))
            while any(batch.writing for batch in batches):
                self._lock.wait(_PATIENCE)

    def stages(self) -> dict[str, float]:
        with self._lock:
            return dict(self._seconds)

    def close(self) -> None:
        if os.getpid() != self._process:
            return  # the threads are the parent's
        self.cancel()
        for _ in self._threads:
            self._tasks.put(None)
        until = time.monotonic() + _FAREWELL
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, until - time.monotonic()))  # one whose read hangs is left to itself

    def _run(self) -> None:
        own = threading.current_thread()
        while own not in self._replaced:
            idle_since = time.monotonic()
            task = self._tasks.get()
            if task is None:
                return
            began = time.monotonic()
            with self._lock:
                self._seconds["idle"] += began - idle_since
                if task[1] in task[0].settled:
                    continue
                self._reading[own] = (*task, began)
            self._do(own, *task)
            with self._lock:
                self._seconds["read"] += time.monotonic() - began
            del task
        self._replaced.discard(own)

    def _do(self, own: threading.Thread, batch: _Batch, position: int) -> None:
        reason, result, claimed = None, None, False

        def claim() -> None:
            nonlocal claimed
            with self._lock:
                self._reading.pop(own, None)
                if position in batch.settled:
                    raise AbandonedError
                batch.writing += 1
                claimed = True

        try:
            result = self._work(int(batch.indices[position]), batch.epoch, batch.out, position, claim)
        except AbandonedError:
            pass
        except Exception as error:  # whatever a user's read raises is that sample's fault
            reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        with self._lock:
            self._reading.pop(own, None)
            batch.writing -= claimed
            if position not in batch.settled:
                batch.results[position] = result
                self._settle(batch, position, reason)
            else:
                self._lock.notify_all()
