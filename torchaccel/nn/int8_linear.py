"""Int8Linear: a linear layer with int8 weights and int8 activations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torchaccel import ops
from torchaccel.nn import _inference, _weights
from torchaccel.nn._int8 import Int8Module
from torchaccel.nn._ranged import name_of
from torchaccel.nn.input_range import InputRange
from torchaccel.ops import _check
from torchaccel.ops.int8_linear import supports


def dynamic_dtype(k: int) -> torch.dtype:
    """The finer type for activations quantized at run time: uint8 spans [min, max], int8 allows twice the depth."""
    return torch.uint8 if k <= _check.MAX_K[torch.uint8] else torch.int8


class Int8Linear(Int8Module):
    """`y = act(x @ weight.T + bias)` with int8 weights, int8 activations and exact int32 sums.

    Args:
        in_features, out_features: K and N.
        two_four: whether a weight that is 2:4 (at most two of four neighbouring inputs are not zero) is packed as such
            on CUDA, for half the products.
        Others: see `Int8Module`.

    Shape: x [..., K] float, or of the input dtype when the input is static; returns [..., N].

    Equivalent to `nn.Linear` with fake-quantized weight (per output channel) and input (per tensor, or per row).
    """

    op = "int8_linear"
    weight: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: str = "none",
        input: str = "dynamic",
        input_dtype: str = "uint8",
        output_dtype: str = "float32",
        two_four: bool = True,
    ) -> None:
        super().__init__(out_features, bias, activation, input, input_dtype, output_dtype, int8_residual=False)
        _weights.check_depth("Int8Linear", in_features, self.input_dtype)
        self.two_four = two_four
        self.in_features = in_features
        self.out_features = out_features
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8))

    @classmethod
    def from_float(cls, module: nn.Linear, input: InputRange | None = None) -> Int8Linear:
        """Quantize a linear layer; `input` is the calibrated range of its input, None finds one per row at each call.

        Raises:
            ValueError: weights that are not finite, or more inputs than int32 sums can hold.
        """
        dtype = dynamic_dtype(module.in_features) if input is None else input.dtype
        with torch.device(module.weight.device):
            out = cls(
                module.in_features,
                module.out_features,
                bias=module.bias is not None,
                input="dynamic" if input is None else "static",
                input_dtype=name_of(dtype),
            )
        out.weight, scale = _weights.quantize_weight("Int8Linear", module.weight)
        out._set_from_float(scale, module.bias, input)
        out.pack()
        return out.train(module.training)

    def to_float(self) -> nn.Linear:
        """`nn.Linear` with the dequantized weight and bias; without the fused activation."""
        weight = _weights.dequantize_weight(self.weight, self.scale)
        sizes = (self.in_features, self.out_features)
        return _weights.float_layer(nn.Linear, *sizes, weight=weight, bias=self.bias, training=self.training)

    def config(self) -> dict[str, Any]:
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            **super().config(),
            "two_four": self.two_four,
        }

    def pack(self) -> None:
        self.colsum = self.weight.sum(1, dtype=torch.int32)
        self.packed = ops.pack_int8(self.weight, two_four=self.two_four)

    def limits(self, device: torch.device) -> str | None:
        return supports(device, out_dtype=self.output_dtype)

    def set_residual(self, scale: float, zero_point: int, dtype: torch.dtype) -> None:
        """Refused: a linear layer adds no residual."""
        _check.fail("Int8Linear", "a linear layer adds no residual; accepted are convolutions")

    def forward(self, input: Tensor) -> Tensor:
        x = input  # named as in the layer that this one stands in for
        guarded = _inference.needs_guard(x)
        source = x.detach() if guarded else x
        b = self._fast()
        if self.input == "static":
            a, scale_a, zero_point = self._quantized_input(source)
            y = ops.int8_linear(
                a, b["weight"], scale_a, b["scale"], zero_point, b["bias"], self.activation, self._out_dtype(x),
                b["output_scale"], b["output_zero_point"], b["colsum"], b["packed"],
            )  # fmt: skip
        else:
            self._refuse_int8(source)
            y = ops.int8_linear_dynamic(
                source, b["weight"], b["scale"], b["bias"], self.activation, self.input_dtype, self._out_dtype(x),
                b["output_scale"], b["output_zero_point"], b["colsum"], b["packed"],
            )  # fmt: skip
        return _inference.guard(y, x) if guarded else y

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self._repr_tail()}"
