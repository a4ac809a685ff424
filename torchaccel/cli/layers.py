"""`torchaccel inspect`: the layers of a checkpoint or of a report, without building the model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from safetensors import safe_open

from torchaccel.cli import output
from torchaccel.compress.removal import in_words
from torchaccel.report import Report
from torchaccel.workflow.checkpoint import read_metadata


def _stored(path: Path) -> dict[str, tuple[int, int, int]]:
    """Tensor name -> (elements, elements that are not zero, bytes)."""
    found = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():
            tensor = file.get_tensor(name)
            found[name] = (tensor.numel(), int(tensor.count_nonzero()), tensor.nbytes)
    return found


def _weight_shape(config: dict[str, Any]) -> list[int] | None:
    """The shape of the float weight that a layer's settings describe."""
    if "in_features" in config:
        return [config["out_features"], config["in_features"]]
    if "in_channels" in config:
        return [config["out_channels"], config["in_channels"] // config.get("groups", 1), *config["kernel_size"]]
    return None


def checkpoint_layers(path: Path) -> dict[str, Any]:
    """What a checkpoint of `save` holds, layer by layer.

    Returns:
        {path, torchaccel, structure, size_bytes, layers: [{name, kind, shape, sparsity, channels, size_bytes}], other:
        {tensors, size_bytes}}; sparsity is the share of weights that are zero or not stored; channels says how many
        remain, or is None where none were removed.

    Raises:
        ValueError: not a checkpoint of torchaccel, or a damaged one.
        OSError: no such file.
    """
    metadata = read_metadata(path)
    stored = _stored(path)
    taken: set[str] = set()
    layers = []
    for name, layer in metadata["layers"].items():
        mine = {key: value for key, value in stored.items() if key.startswith(f"{name}.")}
        taken |= mine.keys()
        try:
            shape = _weight_shape(layer["config"])
            total = math.prod(shape) if shape else 0
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: the settings of layer {name!r} are damaged: {error!r}") from error
        weight = mine.get(f"{name}.values") or mine.get(f"{name}.weight") or (0, total, 0)
        layers.append(
            {
                "name": name,
                "kind": layer["kind"],
                "pattern": layer["config"].get("pattern"),
                "shape": shape,
                "sparsity": 1 - weight[1] / total if total else 0.0,
                "channels": in_words(sides) if (sides := metadata.get("channels", {}).get(name)) else None,
                "size_bytes": sum(size for *_, size in mine.values()),
            }
        )
    rest = [size for name, (*_, size) in stored.items() if name not in taken]
    return {
        "path": str(path),
        "torchaccel": metadata.get("torchaccel"),
        "structure": metadata["structure"],
        "size_bytes": path.stat().st_size,
        "layers": layers,
        "other": {"tensors": len(rest), "size_bytes": sum(rest)},
    }


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _shape(shape: Any) -> str:
    return shape if isinstance(shape, str) else "x".join(map(str, shape or ()))


def _table(title: str, heads: dict[str, bool], rows: list[tuple[object, ...]]) -> None:
    """Print a table, its column of channels only where some were removed."""
    at = list(heads).index("channels")
    if all(row[at] is None for row in rows):
        heads = {head: number for head, number in heads.items() if head != "channels"}
        rows = [(*row[:at], *row[at + 1 :]) for row in rows]
    output.table(title, heads, rows)


def show_checkpoint(found: dict[str, Any]) -> None:
    """Print a checkpoint's table."""
    rows: list[tuple[object, ...]] = [
        (
            layer["name"],
            layer["kind"] + (f" {layer['pattern']}" if layer["pattern"] else ""),
            _shape(layer["shape"]),
            f"{layer['sparsity']:.0%}",
            layer["channels"],
            _size(layer["size_bytes"]),
        )
        for layer in found["layers"]
    ]
    title = f"{found['path']}: {_size(found['size_bytes'])}, written by torchaccel {found['torchaccel']}"
    heads = {"layer": False, "kind": False, "weight": False, "sparsity": True, "channels": False, "size": True}
    _table(title, heads, rows)
    other = found["other"]
    output.say(f"\n{len(rows)} layers; {other['tensors']} other tensors, {_size(other['size_bytes'])}")


def show_report(report: Report) -> None:
    """Print a report's summary and its table of layers."""
    rows: list[tuple[object, ...]] = [
        (
            layer["name"],
            layer["type"],
            _shape(layer["shape"]),
            None if layer["sparsity"] is None else f"{layer['sparsity']:.0%}",
            layer.get("channels"),
            layer["chosen"],
            None if layer["speedup"] is None else f"{layer['speedup']:.2f}x",
            layer["reason"],
        )
        for layer in report.layers
    ]
    output.say("\n".join(map(output.printable, report.summary().splitlines())))
    output.say()
    heads = {"layer": False, "type": False, "shape": False, "sparsity": True, "channels": False, "chosen": False}
    _table("Layers", heads | {"speed-up": True, "reason": False}, rows)
