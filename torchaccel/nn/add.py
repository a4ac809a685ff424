"""Add: the sum of two float activations where it is not the residual of a convolution."""

from __future__ import annotations

from torch import Tensor, nn

from torchaccel.nn._activate import activate_
from torchaccel.ops import _check


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
        return activate_(input + other, self.activation)

    def extra_repr(self) -> str:
        return f"activation={self.activation}"
