"""Layers that own quantized or compressed weights and call the ops."""

from torchaccel.nn.conv_chain import ConvChain
from torchaccel.nn.input_range import InputRange
from torchaccel.nn.int8_add import Int8Add
from torchaccel.nn.int8_conv2d import Int8Conv2d
from torchaccel.nn.int8_conv_transpose2d import Int8ConvTranspose2d
from torchaccel.nn.int8_linear import Int8Linear
from torchaccel.nn.int8_linear_weight_only import Int8LinearWeightOnly
from torchaccel.nn.int8_pool import Int8AdaptiveAvgPool2d, Int8AvgPool2d, Int8MaxPool2d
from torchaccel.nn.sparse_conv2d import SparseConv2d
from torchaccel.nn.sparse_int8_conv2d import SparseInt8Conv2d

__all__ = [
    "InputRange",
    "Int8AdaptiveAvgPool2d",
    "Int8Add",
    "Int8AvgPool2d",
    "ConvChain",
    "Int8Conv2d",
    "Int8ConvTranspose2d",
    "Int8Linear",
    "Int8LinearWeightOnly",
    "Int8MaxPool2d",
    "SparseConv2d",
    "SparseInt8Conv2d",
]
