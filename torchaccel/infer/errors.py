"""What goes wrong with a batch, and with a worker."""

from __future__ import annotations

from concurrent.futures import BrokenExecutor


class BatchError(RuntimeError):
    """A batch of `map` failed; `__cause__` is what the model raised.

    Attributes:
        index: of the batch, from 0.
    """

    def __init__(self, index: int, cause: BaseException) -> None:
        super().__init__(f"batch {index}: {type(cause).__name__}: {cause}")
        self.index = index
        self.__cause__ = cause

    def __reduce__(self) -> tuple[type[BatchError], tuple[int, BaseException | None]]:
        return type(self), (self.index, self.__cause__)


class WorkerDied(BrokenExecutor):
    """A worker process ended by itself or was killed, as for want of memory; its Workers take no more batches."""


class RankError(RuntimeError):
    """Another rank failed, ended or did not answer in time, so that `gather` cannot go on."""


class RemoteError(Exception):
    """The traceback of an exception in another process, as the cause of the exception that came from there."""
