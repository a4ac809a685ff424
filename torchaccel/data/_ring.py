"""Batches' memory, used again and again: a slot is lent out as a tensor and comes back when nothing refers to it."""

from __future__ import annotations

import weakref
from collections import deque

import numpy as np
import torch


class Slot:
    """The memory of one batch: `array` is [batch, ...]."""

    def __init__(self, array: np.ndarray, owner: torch.Tensor) -> None:
        self.array = array
        self._owner = owner
        self._lent: weakref.ref | None = None

    def lend(self, count: int, back: deque[Slot]) -> torch.Tensor:
        """The first `count` samples as a tensor; the slot goes to `back` when its storage is freed.

        Views, and what autograd saved, share the storage, and a tensor from an array keeps that very array object.
        """
        view = self.array[:count]
        self._lent = weakref.ref(view, lambda _: back.append(self))
        return torch.from_numpy(view)


class Ring:
    """Slots that are free, and those that were given back.

    Args:
        slots: how many are kept.
        shape: of one slot.
        dtype: "uint8", "float16" or "float32".
        pinned: in memory that a GPU reads directly.
    """

    def __init__(self, slots: int, shape: tuple[int, ...], dtype: str, pinned: bool = False) -> None:
        self._kept, self._shape, self._dtype, self._pinned = slots, shape, getattr(torch, dtype), pinned
        self._free: list[Slot] = []
        self._lent: set[Slot] = set()  # or the garbage collector would take them, and what tells of their return
        self._back: deque[Slot] = deque()  # appended to by whichever thread frees a tensor
        self.made = 0

    def take(self, more: bool = False) -> Slot | None:
        """A free slot; None where all are in use, unless `more` asks for one beyond the number that is kept."""
        while self._back:
            slot = self._back.popleft()
            self._lent.discard(slot)
            self.give(slot)
        if self._free:
            return self._free.pop()
        if self.made >= self._kept and not more:
            return None
        owner = torch.empty(self._shape, dtype=self._dtype, pin_memory=self._pinned)
        self.made += 1
        return Slot(owner.numpy(), owner)

    def give(self, slot: Slot) -> None:
        """Take back a slot that nothing refers to."""
        if self.made > self._kept:
            self.made -= 1
        else:
            self._free.append(slot)

    def lend(self, slot: Slot, count: int) -> torch.Tensor:
        """The first `count` samples of a slot, which comes back by itself."""
        self._lent.add(slot)
        return slot.lend(count, self._back)
