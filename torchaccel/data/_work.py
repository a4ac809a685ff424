"""What threads do for each kind of source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from torchaccel.data._decode import decoder, fill_with
from torchaccel.data._engines import Engine, NativeEngine, ThreadEngine
from torchaccel.data.recipes import Plan, Step, compile_recipe
from torchaccel.data.sources import Native, Reading


def plan_for(source: Any, steps: Sequence[Step], channels_last: bool) -> Plan | None:
    """The plan of a recipe for a source; None for a Dataset, which has its own transforms."""
    if isinstance(source, Native):
        return compile_recipe(steps, source.channels, source.shape, channels_last)
    if isinstance(source, Reading):
        return compile_recipe(steps, getattr(source, "channels", 3), getattr(source, "shape", None), channels_last)
    if not hasattr(source, "__getitem__"):
        raise ValueError(
            f"Loader: source is a {type(source).__name__}, accepted are ImageFolder, Packed, Tar, Arrays, and what has "
            "__len__ with read or __getitem__"
        )
    if steps or channels_last:
        raise ValueError("Loader: source is a Dataset, whose own transforms apply; recipe and channels_last do not")
    return None


def make_engine(source: Any, plan: Plan | None, seed: int, threads: int, timeout: float | None) -> Engine:
    """Threads for a source: csrc/data's where it can read it, else Python's."""
    if plan is None:
        return ThreadEngine(_fetch(source), threads, timeout)
    by = decoder().by
    if isinstance(source, Native) and by == "native":
        return NativeEngine(source, plan.native, seed, threads, timeout)
    return ThreadEngine(_decode(source, plan, seed, by), threads, timeout)


def _fetch(source: Any) -> Callable:
    def work(index: int, epoch: int, out: np.ndarray | None, position: int, claim: Callable[[], None]) -> Any:
        return source[index]

    return work


def _decode(source: Any, plan: Plan, seed: int, by: str) -> Callable:
    fill, native = fill_with(by), isinstance(source, Native)

    def work(index: int, epoch: int, out: np.ndarray | None, position: int, claim: Callable[[], None]) -> Any:
        label = None
        if native:
            (item,) = source.items(np.array([index]))
        else:
            item = source.read(index)
            if isinstance(item, tuple):
                item, label = item
            item = _checked(item)
        claim()
        assert out is not None
        fill(plan, item, index, seed, epoch, out, position)
        return -1 if label is None else label

    return work


def _checked(item: Any) -> Any:
    """What a `read` of one's own returned, which is not trusted to be a path or a range."""
    if isinstance(item, np.ndarray):
        return np.ascontiguousarray(item)
    if isinstance(item, bytes | bytearray | memoryview):
        return item
    raise ValueError(
        f"read returned a {type(item).__name__}, accepted are bytes and uint8 arrays, alone or with a label"
    )
