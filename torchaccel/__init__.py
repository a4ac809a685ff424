"""torchaccel makes trained PyTorch models faster: pruned and int8 layers, each kept only where measured faster."""

__version__ = "0.1.0"

import importlib
from typing import Any

from torchaccel import data, infer, nn, ops, tune
from torchaccel.compress import (
    Int8Dynamic,
    Int8Static,
    Int8WeightOnly,
    Removed,
    Sparsity,
    quantize_,
    remove_channels_,
    sparsify_,
)
from torchaccel.workflow.accelerate import accelerate
from torchaccel.workflow.benchmark import benchmark
from torchaccel.workflow.checkpoint import load, save
from torchaccel.workflow.doctor import doctor
from torchaccel.workflow.layer_table import Sensitivity
from torchaccel.workflow.optimize import optimize
from torchaccel.workflow.result import Result
from torchaccel.workflow.sensitivity import sensitivity

__all__ = [
    "Int8Dynamic",
    "Int8Static",
    "Int8WeightOnly",
    "Removed",
    "Result",
    "Sensitivity",
    "Sparsity",
    "__version__",
    "accelerate",
    "benchmark",
    "data",
    "doctor",
    "infer",
    "load",
    "nn",
    "ops",
    "optimize",
    "quantize_",
    "remove_channels_",
    "save",
    "sensitivity",
    "sparsify_",
    "tune",
]


def __getattr__(name: str) -> Any:
    """`torchaccel.lightning` is imported when it is first used: it takes seconds, and needs Lightning."""
    if name == "lightning":
        return importlib.import_module("torchaccel.lightning")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
