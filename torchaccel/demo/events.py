"""TensorBoard events of the demo; without TensorBoard the demo runs on, and says so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchaccel.report import Report


class Events:
    """Writes scalars into a folder that `tensorboard --logdir` shows.

    Args:
        folder: made if it is missing.

    Attributes:
        missing: why nothing is written, or None.
    """

    def __init__(self, folder: Path) -> None:
        self.missing: str | None = None
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            self.missing = f"no TensorBoard events: {error}. `pip install tensorboard` brings them."
        else:
            self._writer = SummaryWriter(str(folder))

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Add one point to the curve `tag`."""
        if self._writer is not None:
            self._writer.add_scalar(tag, value, step)

    def sparsity(self, shares: Mapping[str, float], step: int) -> None:
        """Add the share of zeros of each layer."""
        for name, share in shares.items():
            self.scalar(f"sparsity/{name}", share, step)

    def result(self, report: Report, step: int) -> None:
        """Add what the report measured: the model's speed, and each layer's."""
        for side in ("baseline", "optimized"):
            self.scalar(f"speed/images_per_second/{side}", report.data[side]["throughput"], step)
            self.scalar(f"speed/latency_ms/{side}", report.data[side]["latency_ms"], step)
        self.scalar("speed/speedup", report.speedup, step)
        for layer in report.layers:
            if layer["speedup"] is not None:
                self.scalar(f"layer_speedup/{layer['name']}", layer["speedup"], step)
        if self._writer is not None:
            self._writer.add_text("report", "\n".join("    " + line for line in report.summary().splitlines()), step)

    def close(self) -> None:
        """Write out what is buffered."""
        if self._writer is not None:
            self._writer.close()
