"""Progress bars for long steps; silent where the output is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress


class Progress:
    """Shows one bar at a time on standard error."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._shown = sys.stderr.isatty()

    @contextmanager
    def step(self, title: str, total: int) -> Iterator[Callable[[], None]]:
        """A bar of `total` steps for the time of a `with` block, which gets the function that advances it."""
        with self._bar() as bar:
            task = bar.add_task(title, total=total)
            yield lambda: bar.advance(task)

    @contextmanager
    def counted(self, title: str) -> Iterator[Callable[[int, int], None]]:
        """A bar whose length is told as it goes: the function takes the steps that are done, and those in all."""
        with self._bar() as bar:
            task = bar.add_task(title, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)

    def _bar(self) -> RichProgress:
        columns = TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        return RichProgress(*columns, console=self._console, disable=not self._shown)
