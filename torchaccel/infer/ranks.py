"""Inference on several machines: each rank of torch.distributed runs its share of the batches, rank 0 gets all results.

Results come in rounds, one of each rank, so that rank 0 hands them on in the order of the batches and holds one round.
Rank 0 asks before it is sent to: a rank that is ahead waits, with its workers' batches in flight, and can be told to
stop. All goes by a gloo group of its own, whose timeout ends waiting for a rank that hangs.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import timedelta
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from torchaccel.data.ranks import rank_and_world
from torchaccel.infer import _tensors
from torchaccel.infer.errors import RankError

T = TypeVar("T")
_GO_ON, _STOP, _FAILED = 0, 1, 2  # what rank 0 says
_LONGEST_S = 10**6
_RESULT, _END, _ERROR = 0, 1, 2  # what the others say


def share(batches: Iterable[T]) -> Iterator[T]:
    """This rank's batches: every world-th, from the rank-th on; all of them without torch.distributed.

    Args:
        batches: the same on each rank. Each draws all and drops those of others, so let them be cheap to draw: indices,
            names of files, slices of an array that is mapped; for images, `ta.data.Loader` loads a rank's share alone.

    Raises:
        ValueError: a loader that loads a share by itself.
        RuntimeError: torchrun started this process, but torch.distributed is not initialized.

    Equivalent to `itertools.islice(batches, rank, None, world_size)`.
    """
    if getattr(batches, "world", 1) > 1:
        raise ValueError("share: given a loader that loads this rank's share already, accepted is the loader by itself")
    rank, world = rank_and_world("share")
    return islice(batches, rank, None, world)


def gather(results: Iterable[T], timeout: float = 600.0) -> Iterator[T]:
    """All ranks' results, in the order of the batches that `share` dealt out; on rank 0, nothing on the others.

    Every rank calls it and iterates. The results are drawn on each rank as rank 0 asks for them, one round ahead at
    most. What `gather` receives is unpickled: let only machines of your own into the group.

    Args:
        results: of this rank, such as outputs of `Workers.map`: anything that pickle takes, with tensors in it.
        timeout: seconds to wait for a rank's next result, or for rank 0 to ask for it; more than the slowest batch
            takes, and than rank 0 takes over what it is given.

    Yields:
        On rank 0, first each rank's first result, then each one's second, and so on; tensors on the CPU.

    Raises:
        ValueError: a timeout that is not above 0, or above a million.
        RuntimeError: torchrun started this process, but torch.distributed is not initialized.
        RankError: another rank raised, ended, or did not answer in time.
        Exception: what `results` raised on this rank; the others get a RankError.
    """
    if not isinstance(timeout, int | float) or not 0 < timeout <= _LONGEST_S:
        raise ValueError(f"gather: timeout is {timeout!r}, accepted are seconds above 0, at most {_LONGEST_S}")
    rank, world = rank_and_world("gather")
    if world == 1:
        return iter(results)
    link = _Link(timeout)
    return _collected(iter(results), link, world) if rank == 0 else _delivered(iter(results), link)


class _Link:
    """Messages between rank 0 and the others; a failure of the group is a RankError."""

    def __init__(self, timeout: float) -> None:
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))

    def say(self, word: int, to: int) -> None:
        self._send(torch.tensor([word]), to)

    def hear(self, source: int) -> int:
        return int(self._receive(torch.empty(1, dtype=torch.int64), source))

    def send(self, kind: int, message: tuple[bytes, list[Tensor]]) -> None:
        """A value that was split, to rank 0: its kind and sizes, the pickle, and the tensors' bytes."""
        header, tensors = message
        places, size = _tensors.arrange(tensors)
        told = pickle.dumps((header, places))
        body = torch.empty(size, dtype=torch.uint8)
        _tensors.write(body, places, tensors)
        self._send(torch.tensor([kind, len(told), size]), 0)
        self._send(torch.frombuffer(bytearray(told), dtype=torch.uint8), 0)
        if size:
            self._send(body, 0)

    def receive(self, source: int) -> tuple[int, Any]:
        kind, length, size = self._receive(torch.empty(3, dtype=torch.int64), source).tolist()
        told = self._receive(torch.empty(length, dtype=torch.uint8), source)
        body = torch.empty(size, dtype=torch.uint8)
        if size:
            self._receive(body, source)
        header, places = pickle.loads(told.numpy().tobytes())
        return kind, _tensors.join(header, [_tensors.view(body, place) for place in places])

    def _send(self, tensor: Tensor, to: int) -> None:
        try:
            dist.send(tensor, to, group=self._group)
        except RuntimeError as error:
            raise RankError(f"gather: rank {to} ended or did not answer in time: {_first_line(error)}") from error

    def _receive(self, tensor: Tensor, source: int) -> Tensor:
        try:
            dist.recv(tensor, source, group=self._group)
        except RuntimeError as error:
            raise RankError(f"gather: rank {source} ended or did not answer in time: {_first_line(error)}") from error
        return tensor


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _collected(own: Iterator[T], link: _Link, world: int) -> Iterator[T]:
    """Rank 0's part."""
    others, asked = list(range(1, world)), list[int]()
    mine, word = True, _FAILED
    try:
        while mine or others:
            for rank in others:
                link.say(_GO_ON, rank)
                asked.append(rank)
            if mine:
                try:
                    result = next(own)
                except StopIteration:
                    mine = False
                else:
                    yield result
            while asked:
                rank = asked.pop(0)
                kind, value = link.receive(rank)
                if kind == _RESULT:
                    yield value
                else:
                    others.remove(rank)
                if kind == _ERROR:
                    raise RankError(f"gather: rank {rank} raised {value}")
    except GeneratorExit:  # whoever iterates has enough
        word = _STOP
        raise
    finally:
        for rank in others:
            with suppress(RankError):  # one that ended is told nothing
                if rank in asked:
                    link.receive(rank)  # it may be in the middle of its answer
                link.say(word, rank)


def _delivered(own: Iterator[T], link: _Link) -> Iterator[T]:
    """The part of every other rank."""
    while (word := link.hear(0)) == _GO_ON:
        try:
            kind, message = _RESULT, _tensors.split(next(own))
        except StopIteration:
            kind, message = _END, _tensors.split(None)
        except Exception as error:
            link.send(_ERROR, _tensors.split(f"{type(error).__name__}: {error}"))
            raise
        link.send(kind, message)
        if kind == _END:
            return
    if word == _FAILED:
        raise RankError("gather: rank 0 failed, or found that another rank did")
    yield from ()
