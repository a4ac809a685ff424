"""QuantizeInt8: one quantization that several layers share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchaccel import ops
from torchaccel.nn.input_range import InputRange


class QuantizeInt8(nn.Module):
    """Quantize a float tensor with a fixed range; what is int8 already passes.

    Args:
        input_range: scale, zero point and dtype.

    Equivalent to `torch.quantize_per_tensor(x, scale, zero_point, dtype).int_repr()`.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, input_range: InputRange) -> None:
        super().__init__()
        self.input_range = input_range
        # Derived from a constant of the graph, so neither is part of the state.
        self.register_buffer("scale", torch.tensor([input_range.scale]), persistent=False)
        self.register_buffer("zero_point", torch.tensor([input_range.zero_point], dtype=torch.int32), persistent=False)

    def extra_repr(self) -> str:
        r = self.input_range
        return f"scale={r.scale:.3g}, zero_point={r.zero_point}, dtype={r.dtype}"

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.input_range.dtype:
            return x
        return ops.quantize_int8(x, self.scale, self.zero_point, self.input_range.dtype)
