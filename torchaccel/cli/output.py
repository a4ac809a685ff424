"""What commands print: results on standard output, one line for an error, nothing but JSON where JSON was asked for."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

GATE_FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130

# Wide enough for a table of layers where the output is a file or a pipe.
_PIPE_WIDTH = 160


class Commands(TyperGroup):
    """Commands whose errors are one line on standard error, without a traceback, and exit code 2.

    ValueError and OSError are what the package raises for bad input; any other exception is a bug and keeps its
    traceback.
    """

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            code = super().main(*args, **kwargs | {"standalone_mode": False})
        except typer.Abort:
            sys.exit(INTERRUPTED)
        except (ValueError, OSError) as error:
            _complain(str(error))
        except Exception as error:
            # A usage error of click, which typer may carry within itself: known by its method, not by its class.
            if not hasattr(error, "format_message"):
                raise
            _complain(error.format_message())
        sys.exit(code if isinstance(code, int) else 0)


def _complain(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(BAD_INPUT)


def emit(data: Any) -> None:
    """Print JSON on standard output."""
    print(json.dumps(data, indent=2, allow_nan=False))


def say(line: str = "") -> None:
    """Print text as it is, on standard output."""
    print(line, flush=True)


def note(line: str) -> None:
    """Print a remark on standard error, where it never mixes with JSON."""
    print(f"note: {line}", file=sys.stderr)


@contextlib.contextmanager
def only_json(wanted: bool) -> Iterator[None]:
    """Send what others print, such as the code of a user's model, to standard error while JSON is wanted."""
    with contextlib.redirect_stdout(sys.stderr) if wanted else contextlib.nullcontext():
        yield


def printable(text: object) -> str:
    """Text from a file without control characters, which a terminal would obey."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(text))


def table(title: str, columns: dict[str, bool], rows: list[tuple[object, ...]]) -> None:
    """Print a table.

    Args:
        title: the line above it.
        columns: the head of each column, and whether it holds numbers.
        rows: one cell a column; None shows as a dash.
    """
    say(printable(title))
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for head, number in columns.items():
        grid.add_column(head, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for row in rows:
        grid.add_row(*(Text("-" if cell is None else printable(cell)) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)
    console.print(grid)
