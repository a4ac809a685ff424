"""A part of gpu-check in a process of its own, started again for the rest where an item breaks it."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpu_items import FAILED, Result

BROKEN = 3  # exit status: the last result broke the device
_START_S = 60.0  # that a process may take until its first item
_GRACE_S = 15.0  # that an item may take beyond the deadline


def run_section(command: Sequence[str], until: float, item_s: float, emit: Callable[[Result], Any]) -> None:
    """Run `command --results FILE --until T` until T (time.monotonic, one clock for all), again where an item ends it.

    The command appends to FILE a line {"begin": name} before each item and its result after it, and leaves out what has
    lines there. An item without a result ended the process, or took more than `item_s` seconds and was stopped with it.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.jsonl"
        file.touch()
        reader = _Reader(file, emit)
        while True:
            before = reader.seen
            command_line = [*command, "--results", str(file), "--until", f"{until:.3f}"]
            status = _run(command_line, until + _GRACE_S, item_s, reader)
            if status == 0:
                return
            reader.blame("stopped: too slow" if status is None else f"the process ended with status {status}")
            if reader.seen == before or time.monotonic() > until:
                return


class _Reader:
    """Passes results on as they are appended."""

    def __init__(self, file: Path, emit: Callable[[Result], Any]) -> None:
        self.file, self.emit, self.seen = file, emit, 0
        self.begun: str | None = None
        self.since = 0.0  # when it had begun

    def read(self) -> None:
        whole = self.file.read_text().rpartition("\n")[0]
        lines = whole.split("\n") if whole else []
        for line in map(json.loads, lines[self.seen :]):
            self.begun, self.since = line.get("begin"), time.monotonic()
            if self.begun is None:
                self.emit(line)
        self.seen = len(lines)

    def blame(self, detail: str) -> None:
        """Whatever had begun is what ended the process."""
        if self.begun is not None:
            self.emit({"name": self.begun, "status": FAILED, "detail": detail, "s": 0.0})
            self.begun = None


def _run(command: Sequence[str], end: float, item_s: float, reader: _Reader) -> int | None:
    """The command's exit status, or None where it had to be stopped."""
    child = subprocess.Popen(command, start_new_session=True)
    reader.since = time.monotonic() + _START_S - item_s
    while child.poll() is None and time.monotonic() < min(end, reader.since + item_s):
        time.sleep(0.2)
        reader.read()
    if child.poll() is None:
        os.killpg(child.pid, 9)
        child.wait()
        reader.read()
        return None
    reader.read()
    return child.returncode
