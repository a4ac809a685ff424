"""What was measured before, kept in a file: a layer's choice is remembered per shape, mask, threads and machine."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchaccel import _native

_FORMAT = 1
FIELDS = ("speedup", "low", "dense_ms", "chosen_ms")


def default_path() -> Path:
    """`$XDG_CACHE_HOME/torchaccel/choices.json`."""
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(folder) / "torchaccel" / "choices.json"


@cache
def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines) if value}
    name = facts.get("model name", platform.processor())
    # Virtual machines often hide the model's name; these numbers tell processors apart.
    return f"{name} (family {facts.get('cpu family', '?')}, model {facts.get('model', '?')})"


@cache
def _kernels() -> list[str]:
    """The native libraries at hand: a rebuilt one has other times."""
    paths = (Path(library["path"]) for library in _native.status().values() if library["loaded"])
    return [hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in paths]


def machine(device: torch.device) -> dict[str, Any]:
    """What a time depends on beside the layer: processor or GPU, threads, instruction set, versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_model()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "isa": _native.isa(),
        "torch": torch.__version__,
        "kernels": _kernels(),
    }


def _mask_hash(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if name in ("columns", "row_offsets"):
            digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _layout(module: nn.Module) -> dict[str, list[int]]:
    """The sizes of what was packed for the machine: whether a weight is 2:4, and how many of its tiles are kept."""
    names = getattr(module, "derived", ())
    return {name: list(b.shape) for name in names if (b := getattr(module, name)) is not None}


def _settings(module: nn.Module) -> object:
    """What a layer is made of; torch's own layers say it in their text."""
    return module.config() if hasattr(module, "config") else repr(module)  # type: ignore[operator]


def key(dense: nn.Module, dense_args: tuple[Tensor, ...], candidate: nn.Module, args: tuple[Tensor, ...]) -> str:
    """The fingerprint of one comparison, of two layers on the tensors that each would see."""
    facts = {
        "machine": machine(args[0].device),
        "dense": [type(dense).__name__, _settings(dense)],
        "candidate": [type(candidate).__name__, _settings(candidate), _mask_hash(candidate), _layout(candidate)],
        "args": [[list(t.shape), list(t.stride()), str(t.dtype)] for t in (*dense_args, *args)],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


class ChoiceCache:
    """A JSON file of measured comparisons; unreadable it counts as empty, unwritable it is left alone."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or default_path()
        try:
            stored = json.loads(self.path.read_text())
            self._entries = dict(stored["entries"]) if stored["format"] == _FORMAT else {}
        except (OSError, ValueError, KeyError, TypeError):
            self._entries = {}
        self._changed = False

    def get(self, key: str) -> dict[str, Any] | None:
        """The entry under `key`, or None; one that lacks a number counts as none."""
        entry = self._entries.get(key)
        known = isinstance(entry, dict) and all(isinstance(entry.get(field), float) for field in FIELDS)
        return entry if known else None

    def put(self, key: str, entry: dict[str, Any]) -> None:
        """Keep an entry until `save`."""
        self._entries[key] = entry
        self._changed = True

    def save(self) -> None:
        """Write the file under a temporary name and move it into place."""
        if not self._changed:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self.path.parent, delete=False) as file:
                try:
                    json.dump({"format": _FORMAT, "entries": self._entries}, file)
                    file.flush()
                    os.replace(file.name, self.path)
                except BaseException:
                    os.unlink(file.name)
                    raise
        except OSError:
            return
        self._changed = False
