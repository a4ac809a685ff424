"""Int8Conv2d: a convolution with int8 weights and int8 activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchaccel import ops
from torchaccel.nn import _weights
from torchaccel.nn._int8_conv import Int8Conv
from torchaccel.nn._ranged import name_of
from torchaccel.nn.input_range import InputRange
from torchaccel.nn.int8_linear import dynamic_dtype
from torchaccel.ops import blocks
from torchaccel.ops.int8_conv2d import supports


class Int8Conv2d(Int8Conv):
    """`y = act(conv2d(x, weight) + bias + residual)` with int8 weights, int8 activations and exact int32 sums.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups: as in `nn.Conv2d`, in integers.
        two_four: whether a weight that is 2:4 (at most two of four neighbouring inputs are not zero) is packed as such
            on CUDA, for half the products.
        Others: see `Int8Module`; a dynamic input has one scale per image.

    Shape: x [N, C, H, W] float, or of the input dtype when the input is static; any strides. Returns [N, O, OH, OW],
    channels_last.

    Equivalent to `nn.Conv2d` with fake-quantized weight (per output channel) and input (per tensor, or per image).
    """

    op = "int8_conv2d"
    weight: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        activation: str = "none",
        input: str = "static",
        input_dtype: str = "uint8",
        output_dtype: str = "float32",
        int8_residual: bool = False,
        two_four: bool = True,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            activation, input, input_dtype, output_dtype, int8_residual,
        )  # fmt: skip
        self.two_four = two_four
        self.register_buffer(
            "weight", torch.zeros(out_channels, in_channels // groups, *self.kernel_size, dtype=torch.int8)
        )

    @classmethod
    def from_float(cls, module: nn.Conv2d, input: InputRange | None = None) -> Int8Conv2d:
        """Quantize a convolution; `input` is the calibrated range of its input, None finds one per image at each call.

        Raises:
            ValueError: padding other than equal zeros, weights that are not finite, or more products per output than
                int32 sums can hold.
        """
        settings = _weights.conv_settings("Int8Conv2d", module)
        dtype = dynamic_dtype(module.weight[0].numel()) if input is None else input.dtype
        with torch.device(module.weight.device):
            out = cls(
                **settings,
                groups=module.groups,
                input="dynamic" if input is None else "static",
                input_dtype=name_of(dtype),
            )
        out.weight, scale = _weights.quantize_weight("Int8Conv2d", module.weight)
        out._set_from_float(scale, module.bias, input)
        out.pack()
        return out.train(module.training)

    def to_float(self) -> nn.Conv2d:
        """`nn.Conv2d` with the dequantized weight and bias; without the fused activation and residual."""
        weight = _weights.dequantize_weight(self.weight, self.scale)
        sizes = (
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )
        return _weights.float_layer(nn.Conv2d, *sizes, weight=weight, bias=self.bias, training=self.training)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "groups": self.groups, "two_four": self.two_four}

    def pack(self) -> None:
        self.colsum = self.weight.sum((1, 2, 3), dtype=torch.int32)
        self.packed = ops.pack_int8(blocks.matrix_of(self.weight), self.groups, self.in_channels, self.two_four)

    def limits(self, device: torch.device) -> str | None:
        return supports(device, kernel_size=self.kernel_size, out_dtype=self.output_dtype, groups=self.groups)

    def _call(
        self, a: Tensor, scale_a: Tensor, zero_point: Tensor, residual: Tensor | None, out_dtype: torch.dtype
    ) -> Tensor:
        b = self._fast()
        return ops.int8_conv2d(
            a, b["weight"], scale_a, b["scale"], zero_point, b["bias"],
            residual, b["residual_scale"], b["residual_zero_point"],
            self.stride, self.padding, self.dilation, self.groups, self.activation, out_dtype,
            b["output_scale"], b["output_zero_point"], b["colsum"], b["packed"],
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"{self._repr_head()}, {self._repr_tail()}"
