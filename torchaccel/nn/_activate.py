"""Activations of float results that nobody else reads yet."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "relu": torch.relu_,
    "relu6": partial(F.relu6, inplace=True),
    "gelu": F.gelu,
    "silu": partial(F.silu, inplace=True),
}


def activate_(y: Tensor, activation: str) -> Tensor:
    """The activation of y, in its memory where that can be."""
    return _FUNCTIONS[activation](y)
