"""Int8Add: the sum of two int8 activations where it is not the residual of a convolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchaccel import ops
from torchaccel.nn import _inference
from torchaccel.nn._ranged import RangedModule, name_of
from torchaccel.nn.add import Add
from torchaccel.nn.input_range import InputRange
from torchaccel.ops import _check


class Int8Add(RangedModule):
    """`act(a + b)` of two activations with static ranges, given as floats or requantized, in one pass.

    Args:
        activation: "none", "relu", "relu6", "gelu" or "silu".
        input_dtype, other_dtype: "uint8" or "int8", of `a` and of `b`.
        output_dtype: "float32" (or the half type of `a`), "int8" or "uint8" with a static scale.

    Shape: a and b of one shape, float or of their dtype; floats are quantized here. Returns that shape.

    Equivalent to `act(a + b)` of the fake-quantized inputs.
    """

    op = "int8_add"
    other_scale: Tensor
    other_zero_point: Tensor

    def __init__(
        self,
        activation: str = "none",
        input_dtype: str = "uint8",
        other_dtype: str = "uint8",
        output_dtype: str = "float32",
    ) -> None:
        super().__init__(input_dtype, output_dtype)
        _check.known_activation(type(self).__name__, activation)
        self._check_choice("other_dtype", other_dtype, ("uint8", "int8"))
        self.activation = activation
        self.other_dtype: torch.dtype = getattr(torch, other_dtype)
        self._register_range("input", True)
        self._register_range("other", True)
        self._register_range("output", self.output_dtype in _check.INT8)

    @classmethod
    def from_ranges(cls, input: InputRange, other: InputRange, activation: str = "none") -> Int8Add:
        """The sum of activations with these ranges, calibrated or set on the layers that emit them."""
        made = cls(activation, name_of(input.dtype), name_of(other.dtype))
        made._set_range("input", input.scale, input.zero_point)
        made._set_range("other", other.scale, other.zero_point)
        return made.eval()

    def to_float(self) -> Add:
        """The same sum of floats."""
        return Add(self.activation).train(self.training)

    @property
    def residual_range(self) -> InputRange:
        """The static quantization of `b`."""
        return InputRange(float(self.other_scale), int(self.other_zero_point), self.other_dtype)

    def set_residual(self, scale: float, zero_point: int, dtype: torch.dtype) -> None:
        """Quantize `b` with this static scale, which an int8 `b` must have as well."""
        InputRange(scale, zero_point, dtype)
        self.other_dtype = dtype
        self._set_range("other", scale, zero_point)

    def pack(self) -> None:
        """Nothing is derived."""

    def config(self) -> dict[str, Any]:
        return {
            "activation": self.activation,
            "input_dtype": name_of(self.input_dtype),
            "other_dtype": name_of(self.other_dtype),
            "output_dtype": name_of(self.output_dtype),
        }

    def forward(self, input: Tensor, other: Tensor) -> Tensor:
        """Add `input` and `other`, which have one shape."""
        guarded = _inference.needs_guard(input, other)
        a, b = (input.detach(), other.detach()) if guarded else (input, other)
        first, scale_a, zero_point_a = self._quantized(a, "input", self.input_dtype)
        second, scale_b, zero_point_b = self._quantized(b, "other", self.other_dtype)
        y = ops.int8_add(
            first, second, scale_a, zero_point_a, scale_b, zero_point_b, self.activation, self._out_dtype(input),
            self.output_scale, self.output_zero_point,
        )  # fmt: skip
        return _inference.guard(y, input, other) if guarded else y

    def extra_repr(self) -> str:
        return f"{', '.join(f'{name}={value}' for name, value in self.config().items())}, {self._kernel()}"
