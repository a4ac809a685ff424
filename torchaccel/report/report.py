"""The proof that a model became faster: as text, JSON, one HTML page or TensorBoard events."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchaccel.report import _events, _page, _text
from torchaccel.report._files import write_atomically
from torchaccel.report._schema import checked


class Report:
    """What was measured before and after, layer by layer, and on which machine.

    Args:
        data: the dict that `to_json` writes:

            - `baseline`, `optimized`: {form, latency_ms (median of one batch), throughput (samples/s), accuracy
              (fraction 0..1 or None), size_bytes (the checkpoint on disk, or None)}; the baseline is the best dense
              form.
            - `batch_size`, `speedup` (baseline over optimized), `speedup_ci95` ([low, high] or None).
            - `layers`: a list of {name, type, shape (text or sizes), sparsity (0..1 or None), chosen (the kernel, or a
              text that begins with "dense" where the layer stayed as it was), speedup, reason}, and optionally
              dense_ms, chosen_ms and channels (a text, where some were removed).
            - `environment`: any of {torchaccel, torch, python, cpu, isa, threads, device, gpu, date, platform}.
            - optional: `model` (its name), `forms` ([{form, latency_ms or None, note}], all dense forms compared),
              `gates` ({max_drop, min_speedup, accuracy_passed, speed_passed, notes}; None in place of passed means
              not checked), `trials` ({baseline_ms: [...], optimized_ms: [...]}), `settings` (a dict of what was asked
              for, such as {pattern, amount, int8}), `removed` (which channels `remove_channels_` took out: {remaining,
              before, kept, parameters, macs}).

            Further keys are kept as they are.

    Raises:
        ValueError: a key is missing or a value is not accepted; the message names its place.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data: dict[str, Any] = checked(data)

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Report:
        """Read what `to_json` wrote.

        Raises:
            ValueError: the file holds no JSON, or no report.
            OSError: the file cannot be read.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"report: {path} is not JSON ({error})") from None
        try:
            return cls(data)
        except ValueError as error:
            raise ValueError(f"{error} (in {path})") from None

    @property
    def layers(self) -> list[dict[str, Any]]:
        """The layers in the model's order, as in the JSON."""
        layers: list[dict[str, Any]] = self.data["layers"]
        return layers

    @property
    def speedup(self) -> float:
        """Latency of the best dense form over latency of the optimized model."""
        return float(self.data["speedup"])

    def summary(self) -> str:
        """Tell the result in plain text, at most 80 columns wide but for long names."""
        return _text.summary(self.data)

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write the data as JSON; a failure leaves an old file as it was.

        Raises:
            OSError: the folder is missing or cannot be written to.
        """
        write_atomically(path, json.dumps(self.data, indent=2, allow_nan=False) + "\n")

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write one page with all plots and tables inside it; it loads nothing from the network.

        Raises:
            OSError: the folder is missing or cannot be written to.
        """
        write_atomically(path, _page.render(self.data))

    def to_tensorboard(self, log_dir: str | os.PathLike[str], step: int = 0) -> None:
        """Write what was measured as events of one TensorBoard run, so that several reports compare side by side.

        Scalars `speed/...` (speed-up with its interval, latency, samples a second), `accuracy/...` and `size_mb/...`;
        curves `layers/...`, whose steps are the layers in the model's order; the summary and a table of the layers as
        text; and what was asked for as hyperparameters, with speed-up, latency, accuracy and size as their metrics.

        Args:
            log_dir: the run's folder, made if it is missing; one for each report. `tensorboard --logdir` takes the
                folder above. Older events in it stay.
            step: of the scalars and texts that are not about layers, for a run that trained before.

        Raises:
            ImportError: TensorBoard is not installed; the extra torchaccel[tensorboard] brings it.
            OSError: the folder cannot be written to.

        Equivalent to calls of `add_scalar`, `add_text` and `add_hparams` of a torch.utils.tensorboard.SummaryWriter.
        """
        with _events.summary_writer(log_dir) as writer:
            _events.write(writer, self.data, step)

    def __repr__(self) -> str:
        return f"Report(model={self.data.get('model')!r}, speedup={self.speedup:.3f}, layers={len(self.layers)})"
