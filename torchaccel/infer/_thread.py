"""A worker thread: it runs batches on a model that all threads of the process share."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchaccel import measure
from torchaccel.infer import cores


class SharedModel:
    """A model that several threads call; the first call is alone, as layers pack their weights in it."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._first = threading.Lock()
        self._called = False

    def __call__(self, *inputs: Tensor) -> Any:
        if self._called:
            return self._model(*inputs)
        with self._first:
            outputs = self._model(*inputs)
            self._called = True
            return outputs


class WorkerThread:
    """What the one thread of a worker does; its settings are the thread's own."""

    def __init__(self, model: SharedModel, threads: int, share: Sequence[int] | None) -> None:
        self._model, self._threads, self._share = model, threads, share

    def start(self) -> None:
        """Settle in the calling thread. OpenMP's number of threads, and affinity, hold for it and those it starts."""
        if self._share is not None:
            cores.pin(self._share)
        torch.get_num_threads()  # a thread's first look takes over what others set last; later it keeps its own
        torch.set_num_threads(self._threads)

    def run(self, inputs: tuple[Tensor, ...]) -> Any:
        """The model's outputs."""
        with measure.inference():
            return self._model(*inputs)

    def lanes(self) -> list[WorkerThread]:
        """One: the thread itself."""
        return [self]

    def stop(self) -> None:
        """Nothing: the thread ends when there are no more batches."""

    def join(self) -> None:
        """Nothing, likewise."""
