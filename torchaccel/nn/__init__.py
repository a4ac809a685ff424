"""Layers that own quantized or compressed weights and call the ops."""

from torchaccel.nn.input_range import InputRange
from torchaccel.nn.int8_conv2d import Int8Conv2d
from torchaccel.nn.int8_linear import Int8Linear
from torchaccel.nn.int8_linear_weight_only import Int8LinearWeightOnly
from torchaccel.nn.sparse_conv2d import SparseConv2d
from torchaccel.nn.sparse_int8_conv2d import SparseInt8Conv2d

__all__ = ["InputRange", "Int8Conv2d", "Int8Linear", "Int8LinearWeightOnly", "SparseConv2d", "SparseInt8Conv2d"]
