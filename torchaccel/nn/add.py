"""Add: the sum of two float activations where it is not the residual of a convolution."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchaccel.ops import _check

# The sum is nobody else's yet.
_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "relu": torch.relu_,
    "relu6": partial(F.relu6, inplace=True),
    "gelu": F.gelu,
    "silu": partial(F.silu, inplace=True),
}


class Add(nn.Module):
    """`act(a + b)`.

    Args:
        activation: "none", "relu", "relu6", "gelu" or "silu".

    Shape: a and b float, of one shape; returns that shape.
    """

    def __init__(self, activation: str = "none") -> None:
        super().__init__()
        _check.known_activation(type(self).__name__, activation)
        self.activation = activation

    def fuse_activation(self, activation: str) -> None:
        """Apply `activation` to the sum."""
        self.activation = activation

    def forward(self, input: Tensor, other: Tensor) -> Tensor:
        return _IN_PLACE[self.activation](input + other)

    def extra_repr(self) -> str:
        return f"activation={self.activation}"
