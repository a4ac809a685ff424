"""Who decodes here: csrc/data, else simplejpeg and Pillow, else Pillow alone."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchaccel import _native
from torchaccel.data import _reference
from torchaccel.data.recipes import Plan

# (plan, item, index, seed, epoch, out, position): fills out[position], or raises ValueError with the reason.
Fill = Callable[[Plan, Any, int, int, int, np.ndarray, int], None]


@dataclass(frozen=True)
class Decoder:
    """Who decodes images: `by` is "native", "simplejpeg", "pillow" or "none"; `reason` says why not a better one."""

    by: str
    versions: str
    reason: str | None = None


@functools.cache
def decoder() -> Decoder:
    """The best decoder that this install has."""
    module, reason = _native.data()
    if module is not None:
        return Decoder("native", f"{module.jpeg}, {module.png}, {module.isa}")
    pillow, simple = _version("pillow"), _version("simplejpeg")
    if pillow is None:
        return Decoder("none", "", f"{reason}; Pillow, which could stand in, is not installed either")
    if simple is None:
        return Decoder("pillow", f"Pillow {pillow}", reason)
    return Decoder("simplejpeg", f"simplejpeg {simple}, Pillow {pillow}", reason)


def fill_with(name: str) -> Fill:
    """The function that fills one sample in the calling thread, by the decoder of that name."""
    if name == "native":
        module, _ = _native.data()

        def fill(plan: Plan, item: Any, index: int, seed: int, epoch: int, out: np.ndarray, position: int) -> None:
            module.fill(plan.native, item, index, seed, epoch, out, position)

        return fill
    if name == "none":
        raise RuntimeError(
            f"no image decoder is installed: {decoder().reason}. `pip install pillow simplejpeg` brings some"
        )
    return functools.partial(_reference.fill, _reference.decode_simplejpeg if name == "simplejpeg" else None)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
