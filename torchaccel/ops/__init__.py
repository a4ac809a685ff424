"""Every op: schema, reference, fake and public function. The only place that names `torch.ops.torchaccel`."""

from torchaccel.ops._library import has_kernel, load_native, names
from torchaccel.ops.conv_chain import conv_chain
from torchaccel.ops.int8_add import int8_add
from torchaccel.ops.int8_avg_pool2d import int8_avg_pool2d
from torchaccel.ops.int8_conv2d import int8_conv2d
from torchaccel.ops.int8_linear import int8_linear
from torchaccel.ops.int8_linear_dynamic import int8_linear_dynamic
from torchaccel.ops.int8_linear_weight_only import int8_linear_weight_only, pack_weight_only
from torchaccel.ops.int8_max_pool2d import int8_max_pool2d
from torchaccel.ops.norm_quantize import layer_norm_quantize_int8, rms_norm_quantize_int8
from torchaccel.ops.pack_int8 import pack_int8
from torchaccel.ops.quantize_int8 import quantize_int8, quantize_int8_dynamic
from torchaccel.ops.sparse_conv2d import sparse_conv2d
from torchaccel.ops.sparse_int8_conv2d import sparse_int8_conv2d

load_native()

__all__ = [
    "conv_chain",
    "has_kernel",
    "int8_add",
    "int8_avg_pool2d",
    "int8_conv2d",
    "int8_linear",
    "int8_linear_dynamic",
    "int8_linear_weight_only",
    "int8_max_pool2d",
    "layer_norm_quantize_int8",
    "names",
    "pack_int8",
    "pack_weight_only",
    "quantize_int8",
    "quantize_int8_dynamic",
    "rms_norm_quantize_int8",
    "sparse_conv2d",
    "sparse_int8_conv2d",
]
