"""Plans of chains: from the layers of a graph and the size of an image to the steps of `ops.conv_chain`."""

from __future__ import annotations

import torch
from torch import fx, nn

from torchaccel.nn._chain_builder import ACTIVATIONS, Plan, UnplannableError
from torchaccel.nn._chain_float import FloatBuilder
from torchaccel.nn._chain_int8 import Int8Builder
from torchaccel.nn._chain_weights import Groups
from torchaccel.nn.dense import DenseConv2d, DenseConvTranspose2d
from torchaccel.nn.sparse_conv2d import SparseConv2d

__all__ = ["ACTIVATIONS", "Plan", "UnplannableError", "build"]


def build(
    body: fx.GraphModule, size: tuple[int, int, int], dtype: torch.dtype, lanes: int, packed: dict[nn.Module, Groups]
) -> Plan:
    """The plan of a chain's layers for images [C, H, W], which come as floats or as the first layer's int8.

    Args:
        lanes: how many images a thread has at a time, 1 to 16.
        packed: the float32 weights of layers that were packed before; filled.

    Raises:
        UnplannableError: numbers that a chain does not hold, or images that the layers refuse.
    """
    if any(isinstance(module, SparseConv2d | DenseConv2d | DenseConvTranspose2d) for module in body.modules()):
        return FloatBuilder(body, size, dtype, packed).build(lanes)
    return Int8Builder(body, size, dtype).build(lanes)
