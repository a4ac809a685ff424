"""The loader: batches of images, filled by threads while the model works."""

from __future__ import annotations

import atexit
import math
import os
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from torchaccel.data import _state
from torchaccel.data._engines import Engine, cores
from torchaccel.data._iteration import Iteration
from torchaccel.data._ring import Ring
from torchaccel.data._work import make_engine, plan_for
from torchaccel.data.faults import Fault
from torchaccel.data.ranks import rank_and_world
from torchaccel.data.recipes import Normalize, Plan, Step
from torchaccel.data.stats import Clock, Stats

ON_ERROR = ("raise", "skip", "substitute")
_FAULTS_KEPT = 1000


class Loader:
    """Iterates over a source in batches (images, labels), like a torch.utils.data.DataLoader.

    Images come as a tensor [B, C, H, W] in memory that is used again once nothing refers to it; a batch that is kept
    stays as it is. Labels are a tensor [B]. One iteration goes on at a time; a finished one, or one that was left by
    `break`, is followed by the next epoch's.

    Args:
        source: an ImageFolder, Packed, Tar or Arrays; anything with `__len__` and `read(i)` (see
            torchaccel.data.sources.Reading); or a torch.utils.data.Dataset, whose samples are collated as DataLoader
            does. Python code runs on threads too, and those take turns as far as it holds the GIL.
        batch_size: samples of a batch on each rank; the last of an epoch may be smaller.
        recipe: steps of torchaccel.data.recipes, in order; None leaves images of one size as they are.
        shuffle: another order each epoch; else that of the source.
        seed: of the order and of all that the recipe draws, with the epoch and the sample's index.
        rank: of this process among `world`, each of which loads its share of every batch of batch_size * world samples.
        world: processes that load the same source together. Without rank and world they are those of torch.distributed
            where it is initialized, else 0 of 1; `rank=0, world=1` gives each process all samples.
        threads: that fill batches; None takes one a core that this process may use.
        slots: batches that are being filled, ready or in use, at most; more only while the caller keeps more.
        on_error: what a sample that cannot be read does: "raise" a SampleError, "skip" it, so that its batch is
            shorter, or "substitute" another one, chosen by (seed, epoch, index). `faults` names them all.
        timeout: seconds that one `read` may take, or for other sources one batch; None waits for ever.
        drop_last: leave out a last batch that is smaller.
        channels_last: whether images are in torch.channels_last memory format, which is cheaper to write.

    Attributes:
        faults: the latest samples that failed, at most 1000; `stats().failed` counts all.

    Raises:
        ValueError: an argument that is out of range, or a recipe that does not fit the source.
        RuntimeError: no decoder is installed for images that are encoded.

    Equivalent to torch.utils.data.DataLoader(dataset, batch_size, shuffle) with the recipe as its transforms.
    """

    def __init__(
        self,
        source: Any,
        batch_size: int,
        recipe: Sequence[Step] | None = None,
        *,
        shuffle: bool = False,
        seed: int = 0,
        rank: int | None = None,
        world: int | None = None,
        threads: int | None = None,
        slots: int = 4,
        on_error: str = "raise",
        timeout: float | None = None,
        drop_last: bool = False,
        channels_last: bool = False,
    ) -> None:
        threads = cores() if threads is None else threads
        _at_least("batch_size", batch_size, 1)
        _at_least("threads", threads, 1)
        _at_least("slots", slots, 2)
        _at_least("seed", seed, 0)
        rank, world = _rank_and_world(rank, world)
        if not 0 <= rank < world:
            raise ValueError(f"Loader: rank is {rank} of world {world}, accepted is 0 <= rank < world")
        if on_error not in ON_ERROR:
            raise ValueError(f"Loader: on_error is {on_error!r}, accepted are {', '.join(ON_ERROR)}")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"Loader: timeout is {timeout}, accepted are seconds above 0, or None")
        if not hasattr(source, "__len__") or len(source) == 0:
            raise ValueError("Loader: the source is empty or has no length")
        self.source, self.batch_size, self.shuffle, self.seed = source, batch_size, shuffle, seed
        self.rank, self.world, self.threads, self.slots = rank, world, threads, slots
        self.on_error, self.timeout, self.drop_last = on_error, timeout, drop_last
        self.faults: deque[Fault] = deque(maxlen=_FAULTS_KEPT)
        self._steps = tuple(recipe or ())
        self._channels_last = channels_last
        self._plan: Plan | None = plan_for(source, self._steps, channels_last)
        self._pinned = self._pixels_only = False
        self._epoch = self._cursor = 0
        self._resuming = False  # the state was loaded, and no iteration began since
        self._engine: Engine | None = None
        self._ring: Ring | None = None
        self._process = os.getpid()
        self._clock = Clock()
        self._iteration: weakref.ref[Iteration] | None = None

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank."""
        whole = self.batch_size * self.world
        count = len(self.source)
        return count // whole if self.drop_last else math.ceil(count / whole)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, Any]]:
        self._end_iteration()
        if not self._resuming and self._cursor:
            self._epoch, self._cursor = self._epoch + 1, 0  # the one before was left early
        self._resuming = False
        engine, ring = self._started()
        iteration = Iteration(self, engine, ring, self._epoch, self._cursor, self._clock)
        self._iteration = weakref.ref(iteration)
        return iteration

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration, from its start; after load_state_dict of that epoch, from there.

        An iteration of which no batch was asked for yet is the next one.

        Raises:
            ValueError: an epoch below 0 or above 2^32 - 1.
        """
        if not 0 <= epoch < 1 << 32:
            raise ValueError(f"Loader: epoch is {epoch}, accepted is 0..{(1 << 32) - 1}")
        iteration = self._iteration() if self._iteration is not None else None
        waiting = iteration is not None and iteration.is_waiting
        if epoch == self._epoch and (self._resuming or waiting):
            return
        self._epoch, self._cursor = epoch, 0
        if iteration is not None and waiting:
            iteration.start_at(epoch, 0)
        else:
            self._end_iteration()
            self._resuming = True

    @property
    def sampler(self) -> Loader:
        """The loader itself, which chooses the order: Lightning calls `set_epoch` of a loader's sampler."""
        return self

    @property
    def batch_sampler(self) -> None:
        """None; Lightning looks for it where there is a sampler."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is, after the batch that was delivered last: plain data of a fixed size.

        It is the same on every rank, and holds for any world and batch size, if all ranks have taken as many batches.
        """
        return _state.of(self.source, self.seed, self.shuffle, self._epoch, self._cursor)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state: the next iteration delivers what would have followed, to the bit.

        Raises:
            ValueError: a state of another source, seed, order or version.
        """
        epoch, cursor = _state.read(state, self.source, self.seed, self.shuffle)
        self._end_iteration()
        self._epoch, self._cursor, self._resuming = epoch, cursor, True

    def stats(self) -> Stats:
        """Who waited for whom so far, and what the time went into."""
        stages = {} if self._engine is None else self._engine.stages()
        return self._clock.stats(stages, self.slots)

    def close(self) -> None:
        """End the threads; they start again with the next iteration."""
        self._end_iteration()
        engine, self._engine, self._ring = self._engine, None, None
        if engine is not None:
            engine.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def deliver_uint8(self) -> Normalize | None:
        """From now on deliver pixels in pinned memory and leave out Normalize, which is returned: a GPU does it."""
        normalize = next((step for step in self._steps if isinstance(step, Normalize)), None)
        if self._plan is not None and not self._pixels_only:
            self.close()
            steps = [step for step in self._steps if step is not normalize]
            self._plan = plan_for(self.source, steps, self._channels_last)
            self._pinned, self._pixels_only = torch.cuda.is_available(), True
        return normalize

    def _started(self) -> tuple[Engine, Ring | None]:
        if self._process != os.getpid():
            # Threads do not survive a fork, so that the child starts its own.
            self._engine, self._ring, self._process = None, None, os.getpid()
        if self._engine is None:
            self._engine = make_engine(self.source, self._plan, self.seed, self.threads, self.timeout)
            _running.add(self)
            if self._plan is not None:
                shape = (self.batch_size, *self._plan.shape)
                self._ring = Ring(self.slots, shape, self._plan.dtype, self._pinned)
        return self._engine, self._ring

    def _end_iteration(self) -> None:
        iteration = self._iteration() if self._iteration is not None else None
        if iteration is not None:
            iteration.supersede()

    def _delivered(self, cursor: int) -> None:
        """An iteration delivered all samples before `cursor`."""
        self._cursor = cursor

    def _finished(self) -> None:
        """An iteration delivered its whole epoch."""
        self._epoch, self._cursor = self._epoch + 1, 0


def _at_least(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or not least <= value < 1 << 63:
        raise ValueError(f"Loader: {name} is {value!r}, accepted is an int of at least {least}")


def _rank_and_world(rank: int | None, world: int | None) -> tuple[int, int]:
    """Those that are given, else those of torch.distributed."""
    if rank is not None and world is not None:
        return rank, world
    if rank is not None or world is not None:
        raise ValueError(f"Loader: rank is {rank}, world is {world}, accepted are both or neither")
    return rank_and_world("Loader")


_running: weakref.WeakSet[Loader] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Threads that decode while the interpreter is taken down would crash it."""
    for loader in list(_running):
        loader.close()
