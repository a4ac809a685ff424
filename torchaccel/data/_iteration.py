"""One pass over an epoch: asks for batches ahead, waits for the next, and deals with samples that failed."""

from __future__ import annotations

import os
import time
import warnings
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import default_collate

from torchaccel.data._engines import Engine, Outcome
from torchaccel.data._random import Permutation, substitute
from torchaccel.data._ring import Ring, Slot
from torchaccel.data.faults import Fault, SampleError
from torchaccel.data.sources import Native
from torchaccel.data.stats import Clock

if TYPE_CHECKING:
    from torchaccel.data.loader import Loader

_SUBSTITUTES_TRIED = 16


@dataclass
class _Pending:
    """A batch that was asked for."""

    ticket: int
    indices: np.ndarray  # int64 [samples of this rank]
    end: int  # the cursor after it
    slot: Slot | None


class Iteration:
    """The iterator of a loader.

    Args:
        loader: whose settings hold.
        engine: that fills batches.
        ring: the batches' memory; None for a Dataset, which brings its own.
        epoch: of the order and of what is drawn.
        cursor: samples of the epoch, over all ranks, that are done.
        clock: for the statistics.
    """

    def __init__(
        self, loader: Loader, engine: Engine, ring: Ring | None, epoch: int, cursor: int, clock: Clock
    ) -> None:
        self._loader, self._engine, self._ring, self._clock = loader, engine, ring, clock
        self._count = len(loader.source)
        self._native = isinstance(loader.source, Native)
        self.start_at(epoch, cursor)
        self._pending: deque[_Pending] = deque()
        self._open = True
        self._process = os.getpid()
        self._superseded = False
        self._began = self._left = time.perf_counter()
        self._first = True

    def start_at(self, epoch: int, cursor: int) -> None:
        """Begin there; only while it is waiting."""
        self._epoch = epoch
        self._order = Permutation(self._count, self._loader.seed, epoch) if self._loader.shuffle else None
        self._asked = cursor  # the cursor after what was asked for
        self.is_waiting = True  # for its first batch to be asked for

    def __iter__(self) -> Iteration:
        return self

    def __next__(self) -> tuple[torch.Tensor, Any]:
        if self._process != os.getpid():
            raise RuntimeError("Loader: this iteration belongs to the parent process; start one here")
        if self._superseded:
            raise RuntimeError("Loader: another iteration of this loader began, or it was closed; this one is over")
        while True:
            if not self._open:
                raise StopIteration
            came = time.perf_counter()
            self.is_waiting = False
            self._ask_ahead()
            if not self._pending:
                self._loader._finished()
                self.close()
                raise StopIteration
            try:
                batch = self._next(came)
            except BaseException:
                self.close()
                raise
            if batch is not None:
                return batch

    def supersede(self) -> None:
        """End the iteration from outside: to go on with it is an error, not an end."""
        self._superseded = self._superseded or self._open
        self.close()

    def close(self) -> None:
        """End the iteration; what was asked for ahead is forgotten."""
        self.is_waiting = False
        if self._open and self._process == os.getpid():
            self._open = False
            self._engine.cancel()
            for pending in self._pending:
                if pending.slot is not None and self._ring is not None:
                    self._ring.give(pending.slot)
            self._pending.clear()

    def __del__(self) -> None:
        self.close()

    def _ask_ahead(self) -> None:
        while self._more():
            if self._ring is not None:
                slot = self._ring.take(more=not self._pending)
                if slot is None:
                    return
            elif len(self._pending) >= self._loader.slots:
                return
            else:
                slot = None
            indices, self._asked = self._plan(self._asked)
            out = None if slot is None else slot.array[: len(indices)]
            ticket = self._engine.submit(indices, self._epoch, out)
            self._pending.append(_Pending(ticket, indices, self._asked, slot))

    def _more(self) -> bool:
        whole = self._loader.batch_size * self._loader.world
        return self._asked + (whole if self._loader.drop_last else 1) <= self._count

    def _plan(self, start: int) -> tuple[np.ndarray, int]:
        """The samples of this rank in the next batch over all ranks, and the cursor after it."""
        rank, world = self._loader.rank, self._loader.world
        end = min(start + self._loader.batch_size * world, self._count)
        positions = np.arange(start + rank, end, world)
        if not len(positions):
            positions = np.array([rank % self._count])  # no rank may have a batch less than the others
        return (positions if self._order is None else self._order(positions)), end

    def _next(self, came: float) -> tuple[torch.Tensor, Any] | None:
        pending = self._pending[0]
        clock = self._clock
        clock.asked += 1
        clock.ready += sum(self._engine.done(other.ticket) for other in self._pending)
        waited = time.perf_counter()
        self._engine.wait(pending.ticket)
        clock.wait += time.perf_counter() - waited
        outcome = self._engine.take(pending.ticket)
        self._pending.popleft()
        try:
            kept, indices = self._settle(pending, outcome)
        except BaseException:
            if pending.slot is not None and self._ring is not None:
                self._ring.give(pending.slot)
            raise
        self._loader._delivered(pending.end)
        now = time.perf_counter()
        if self._first:
            self._first, clock.first = False, now - self._began
        clock.seconds += now - self._left
        self._left = now
        if not len(kept):
            if pending.slot is not None and self._ring is not None:
                self._ring.give(pending.slot)
            return None
        clock.batches += 1
        clock.samples += len(kept)
        return self._deliver(pending, outcome, kept, indices)

    def _settle(self, pending: _Pending, outcome: Outcome) -> tuple[np.ndarray, np.ndarray]:
        """The positions that hold samples, and the samples' indices; failed ones are reported and maybe replaced."""
        indices = pending.indices
        if not outcome.failures:
            return np.arange(len(indices)), indices
        indices = indices.copy()
        lost = []
        for position, reason in outcome.failures:
            stand_in = self._substitute(pending, outcome, position) if self._loader.on_error == "substitute" else None
            fault = self._report(int(pending.indices[position]), reason, stand_in)
            if stand_in is not None:
                indices[position] = stand_in
            elif self._loader.on_error == "skip":
                lost.append(position)
            else:
                raise SampleError(fault)
        kept = np.delete(np.arange(len(indices)), lost)
        return kept, indices[kept]

    def _report(self, index: int, reason: str, stand_in: int | None = None) -> Fault:
        fault = Fault(index, self._name(index), reason, self._epoch, stand_in)
        self._loader.faults.append(fault)
        self._clock.failed += 1
        if self._loader.on_error != "raise":
            warnings.warn(f"Loader: {fault}", stacklevel=5)
        return fault

    def _name(self, index: int) -> str:
        name = getattr(self._loader.source, "name", None)
        return name(index) if callable(name) else f"{type(self._loader.source).__name__} {index}"

    def _substitute(self, pending: _Pending, outcome: Outcome, position: int) -> int | None:
        """Fill a position with another sample; None if a number of them fail too."""
        for attempt in range(_SUBSTITUTES_TRIED):
            index = int(pending.indices[position])
            other = substitute(self._loader.seed, self._epoch, index, attempt, self._count)
            out = None if pending.slot is None else pending.slot.array[position : position + 1]
            ticket = self._engine.submit(np.array([other]), self._epoch, out)
            self._engine.wait(ticket)
            tried = self._engine.take(ticket)
            if not tried.failures:
                if outcome.results is not None and tried.results is not None:
                    outcome.results[position] = tried.results[0]
                return other
        return None

    def _deliver(
        self, pending: _Pending, outcome: Outcome, kept: np.ndarray, indices: np.ndarray
    ) -> tuple[torch.Tensor, Any]:
        results = [outcome.results[position] for position in kept] if outcome.results is not None else []
        if pending.slot is None or self._ring is None:
            return default_collate(results)
        if len(kept) < len(pending.indices):
            for to, position in enumerate(kept):  # close the gaps
                pending.slot.array[to] = pending.slot.array[position]
        images = self._ring.lend(pending.slot, len(kept))
        plan = self._loader._plan
        if plan is not None and plan.channels_last:
            images = images.permute(0, 3, 1, 2)
        if self._native:
            return images, torch.from_numpy(self._loader.source.labels(indices))
        return images, default_collate(results)
