"""Lightning comes as `lightning` and as `pytorch_lightning`, with classes of their own: which one is at work here."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

_NAMES = ("lightning.pytorch", "pytorch_lightning")


def package() -> ModuleType:
    """The one that the program has imported already, else the one that is installed.

    Raises:
        ImportError: neither is installed.
    """
    for name in sorted(_NAMES, key=lambda name: name not in sys.modules):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in (name, name.partition(".")[0]):
                raise
    raise ImportError(
        "torchaccel.lightning: PyTorch Lightning is not installed: `pip install pytorch-lightning`, "
        "the extra torchaccel[lightning]"
    )


def package_of(module: object) -> Any:
    """The one whose LightningModule a module is.

    Raises:
        ValueError: it is no LightningModule.
    """
    for name in _NAMES:
        if name in sys.modules and isinstance(module, sys.modules[name].LightningModule):
            return sys.modules[name]
    raise ValueError(f"module: given {type(module).__name__}, accepted is a LightningModule")
