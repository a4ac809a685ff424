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
        columns = TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with RichProgress(*columns, console=self._console, disable=not self._shown) as bar:
            task = bar.add_task(title, total=total)
            yield lambda: bar.advance(task)
