"""TensorBoard events of the demo; without TensorBoard the demo runs on, and says so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchaccel.report import Report, summary_writer


class Events:
    """Writes scalars into a folder that `tensorboard --logdir` shows.

    Args:
        folder: made if it is missing.

    Attributes:
        missing: why nothing is written, or None.
    """

    def __init__(self, folder: Path) -> None:
        self.missing: str | None = None
        self._folder = folder
        self._writer: Any = None
        try:
            self._writer = summary_writer(folder)
        except ImportError as error:
            self.missing = f"no TensorBoard events: {error}"

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Add one point to the curve `tag`."""
        if self._writer is not None:
            self._writer.add_scalar(tag, value, step)

    def sparsity(self, shares: Mapping[str, float], step: int) -> None:
        """Add the share of zeros of each layer."""
        for name, share in shares.items():
            self.scalar(f"sparsity/{name}", share, step)

    def result(self, report: Report, step: int) -> None:
        """Add what the report measured, to the same run."""
        if self._writer is not None:
            self._writer.flush()
            report.to_tensorboard(self._folder, step)

    def close(self) -> None:
        """Write out what is buffered."""
        if self._writer is not None:
            self._writer.close()
