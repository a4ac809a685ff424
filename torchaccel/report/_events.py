"""The report as TensorBoard events: figures of the model, curves over its layers, tables, hyperparameters."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torchaccel.report import _format, _text

Data = Mapping[str, Any]
SIDES = ("baseline", "optimized")


def summary_writer(log_dir: str | os.PathLike[str]) -> Any:
    """A `torch.utils.tensorboard.SummaryWriter` on a folder, which is made if it is missing.

    Raises:
        ImportError: TensorBoard is not installed.
        OSError: the folder cannot be written to.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            f"TensorBoard is not installed ({error}): `pip install tensorboard`, the extra torchaccel[tensorboard]"
        ) from error
    return SummaryWriter(str(log_dir))


def write(writer: Any, data: Data, step: int) -> None:
    """Add a checked report to what a SummaryWriter writes."""
    metrics = _metrics(data)
    for tag, value in _beside(data).items():
        writer.add_scalar(tag, value, step)
    for place, layer in enumerate(data["layers"]):
        for key in ("speedup", "sparsity", "dense_ms", "chosen_ms"):
            if layer.get(key) is not None:
                writer.add_scalar(f"layers/{key}", layer[key], place)
    writer.add_text("report/summary", "\n".join("    " + line for line in _text.summary(data).splitlines()), step)
    writer.add_text("report/layers", _layer_table(data), step)
    # "." keeps them in this run; by default they become a run of their own. This writes the metrics as scalars too.
    writer.add_hparams(_hparams(data), metrics, run_name=".", global_step=step)
    writer.flush()


def _metrics(data: Data) -> dict[str, float]:
    """What runs are compared by."""
    after = data["optimized"]
    found = {
        "speed/speedup": data["speedup"],
        "speed/latency_ms/optimized": after["latency_ms"],
        "accuracy/optimized": after["accuracy"],
        "size_mb/optimized": None if after["size_bytes"] is None else after["size_bytes"] / 1e6,
    }
    return {tag: value for tag, value in found.items() if value is not None}


def _beside(data: Data) -> dict[str, float]:
    """The scalars that are no metrics."""
    before = data["baseline"]
    low, high = data.get("speedup_ci95") or (None, None)
    found = {
        "speed/speedup_low": low,
        "speed/speedup_high": high,
        "speed/latency_ms/baseline": before["latency_ms"],
        **{f"speed/samples_per_second/{side}": data[side]["throughput"] for side in SIDES},
        "accuracy/baseline": before["accuracy"],
        "size_mb/baseline": None if before["size_bytes"] is None else before["size_bytes"] / 1e6,
    }
    return {tag: value for tag, value in found.items() if value is not None}


def _hparams(data: Data) -> dict[str, Any]:
    """What was asked for and where it ran; TensorBoard takes numbers, texts and booleans."""
    env, gates = data["environment"], data.get("gates") or {}
    found = {
        "model": data.get("model"),
        **(data.get("settings") or {}),
        "batch_size": data["batch_size"],
        **{key: gates.get(key) for key in ("max_drop", "min_speedup", "speed_passed", "accuracy_passed")},
        **{key: env.get(key) for key in ("device", "threads", "isa", "torch", "torchaccel")},
    }
    return {key: value for key, value in found.items() if isinstance(value, str | bool | int | float)}


def _layer_table(data: Data) -> str:
    """The decisions as a table in Markdown; its first column is the step of the curves `layers/...`."""
    head = ("step", "layer", "type", "shape", "zeros", "chosen", "speed-up", "why")
    rows = [head, ("---",) * len(head)]
    for place, layer in enumerate(data["layers"]):
        zeros = "-" if layer["sparsity"] is None else _format.percent(layer["sparsity"], 1)
        rows.append(
            (
                str(place), layer["name"], layer["type"], _format.shape(layer["shape"]), zeros, layer["chosen"],
                _format.ratio(layer["speedup"]), layer["reason"],
            )
        )  # fmt: skip
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
