"""Int8Conv: what the dense and the sparse int8 convolution share: geometry, and how the input is quantized."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchaccel import ops
from torchaccel.nn import _inference, _weights
from torchaccel.nn._int8 import Int8Module
from torchaccel.ops import _check


class Int8Conv(Int8Module):
    """Base of the int8 convolutions; a subclass holds the weight and calls its op in `_call`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int],
        padding: int | Sequence[int],
        dilation: int | Sequence[int],
        groups: int,
        bias: bool,
        activation: str,
        input: str,
        input_dtype: str,
        output_dtype: str,
        int8_residual: bool,
    ) -> None:
        super().__init__(out_channels, bias, activation, input, input_dtype, output_dtype, int8_residual)
        name = type(self).__name__
        if groups < 1 or in_channels % groups or out_channels % groups:
            _check.fail(name, f"groups is {groups}, accepted is a divisor of {in_channels} and {out_channels} channels")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _weights.pair(name, "kernel_size", kernel_size, 1)
        self.stride = _weights.pair(name, "stride", stride, 1)
        self.padding = _weights.pair(name, "padding", padding, 0)
        self.dilation = _weights.pair(name, "dilation", dilation, 1)
        self.groups = groups
        _weights.check_depth(name, in_channels // groups * self.kernel_size[0] * self.kernel_size[1], self.input_dtype)

    def config(self) -> dict[str, Any]:
        return {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "kernel_size": list(self.kernel_size),
            "stride": list(self.stride),
            "padding": list(self.padding),
            "dilation": list(self.dilation),
            **super().config(),
            "int8_residual": self.int8_residual,
        }

    def _quantize_per_image(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[N, C, H, W] float as int8 in channels_last, with one scale and zero point per image."""
        n, c, height, width = x.shape
        rows, scale, zero_point = ops.quantize_int8_dynamic(
            x.permute(0, 2, 3, 1).reshape(n, height * width * c), self.input_dtype
        )
        return rows.view(n, height, width, c).permute(0, 3, 1, 2), scale, zero_point

    def _call(
        self, a: Tensor, scale_a: Tensor, zero_point: Tensor, residual: Tensor | None, out_dtype: torch.dtype
    ) -> Tensor:
        raise NotImplementedError

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Convolve [N, C, H, W]; `residual` [N, O, OH, OW] is added before the activation."""
        x = input  # named as in the layer that this one stands in for
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            _check.fail(type(self).__name__, f"x has shape {tuple(x.shape)}, accepted is [N, {self.in_channels}, H, W]")
        guarded = _inference.needs_guard(x, residual)
        source = x.detach() if guarded else x
        added = residual.detach() if guarded and residual is not None else residual
        if self.input == "static":
            a, scale_a, zero_point = self._quantized_input(source)
        else:
            self._refuse_int8(source)
            a, scale_a, zero_point = self._quantize_per_image(source)
        y = self._call(a, scale_a, zero_point, added, self._out_dtype(x))
        return _inference.guard(y, x, residual) if guarded else y

    def _repr_head(self) -> str:
        out = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        if self.padding != (0, 0):
            out += f", padding={self.padding}"
        if self.dilation != (1, 1):
            out += f", dilation={self.dilation}"
        if self.groups != 1:
            out += f", groups={self.groups}"
        return out
