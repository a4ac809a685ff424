"""Int8MaxPool2d, Int8AvgPool2d and Int8AdaptiveAvgPool2d: pooling that keeps activations int8."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchaccel import ops
from torchaccel.nn import _inference
from torchaccel.nn._packed import PackedModule
from torchaccel.nn._ranged import RangedModule, name_of
from torchaccel.nn._weights import pair
from torchaccel.nn.input_range import InputRange
from torchaccel.ops import _check, quantize_int8

_Size = int | Sequence[int]


def _check_input(owner: str, x: Tensor) -> None:
    if x.dim() != 4:
        _check.fail(owner, f"x has shape {tuple(x.shape)}, accepted is [N, C, H, W]")


class Int8MaxPool2d(PackedModule):
    """`nn.MaxPool2d` of int8 or uint8 activations, whose scale stays as it is; floats are pooled as floats.

    Args:
        kernel_size, stride, padding, dilation, ceil_mode: as in `nn.MaxPool2d`; stride None is the kernel size.

    Shape: x [N, C, H, W], any strides. Returns [N, C, OH, OW] of the same dtype, int8 in channels_last.

    Equivalent to `nn.MaxPool2d(kernel_size, stride, padding, dilation, ceil_mode=ceil_mode)`.
    """

    op = "int8_max_pool2d"

    def __init__(
        self,
        kernel_size: _Size,
        stride: _Size | None = None,
        padding: _Size = 0,
        dilation: _Size = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.kernel_size = pair(name, "kernel_size", kernel_size, 1)
        self.stride = self.kernel_size if stride is None else pair(name, "stride", stride, 1)
        self.padding = pair(name, "padding", padding, 0)
        self.dilation = pair(name, "dilation", dilation, 1)
        self.ceil_mode = ceil_mode

    @classmethod
    def from_float(cls, module: nn.MaxPool2d) -> Int8MaxPool2d:
        """The same pooling.

        Raises:
            ValueError: a layer that returns indices too.
        """
        if module.return_indices:
            _check.fail("Int8MaxPool2d", "return_indices is True, accepted is False")
        made = cls(module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)
        return made.train(module.training)

    def to_float(self) -> nn.MaxPool2d:
        """The same pooling as `nn.MaxPool2d`."""
        made = nn.MaxPool2d(self.kernel_size, self.stride, self.padding, self.dilation, ceil_mode=self.ceil_mode)
        return made.train(self.training)

    def pack(self) -> None:
        """Nothing is derived."""

    def _device(self) -> torch.device:
        return torch.device("cpu")  # it holds no tensor that could lie elsewhere

    def config(self) -> dict[str, Any]:
        names = ("kernel_size", "stride", "padding", "dilation")
        return {name: list(getattr(self, name)) for name in names} | {"ceil_mode": self.ceil_mode}

    def forward(self, input: Tensor) -> Tensor:
        windows = self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
        if input.dtype in _check.INT8:
            return ops.int8_max_pool2d(input, *windows)
        return F.max_pool2d(input, *windows)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.config().items())


class _Average(RangedModule):
    """Base of the average pools; a subclass says which windows there are."""

    op = "int8_avg_pool2d"

    def __init__(self, input_dtype: str, output_dtype: str) -> None:
        super().__init__(input_dtype, output_dtype)
        self._register_range("input", True)
        self._register_range("output", self.output_dtype in _check.INT8)

    def pack(self) -> None:
        """Nothing is derived."""

    def config(self) -> dict[str, Any]:
        return {"input_dtype": name_of(self.input_dtype), "output_dtype": name_of(self.output_dtype)}

    def _pool(self, a: Tensor, scale: Tensor, zero_point: Tensor, out_dtype: torch.dtype) -> Tensor:
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        _check_input(type(self).__name__, input)
        guarded = _inference.needs_guard(input)
        a, scale, zero_point = self._quantized_input(input.detach() if guarded else input)
        y = self._pool(a, scale, zero_point, self._out_dtype(input))
        return _inference.guard(y, input) if guarded else y

    def extra_repr(self) -> str:
        settings = ", ".join(f"{name}={value}" for name, value in self.config().items())
        return f"{settings}, {self._kernel()}"


class Int8AvgPool2d(_Average):
    """`nn.AvgPool2d` of int8 activations: exact int32 sums, given as floats or requantized.

    Args:
        kernel_size, stride, padding, ceil_mode, count_include_pad: as in `nn.AvgPool2d`.
        input_dtype: "uint8" or "int8".
        output_dtype: "float32" (or the half type of the input), "int8" or "uint8" with a static scale.

    Shape: x [N, C, H, W] float, or of the input dtype; any strides. Returns [N, C, OH, OW], channels_last.

    Equivalent to `nn.AvgPool2d` of the fake-quantized input.
    """

    def __init__(
        self,
        kernel_size: _Size,
        stride: _Size | None = None,
        padding: _Size = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        input_dtype: str = "uint8",
        output_dtype: str = "float32",
    ) -> None:
        super().__init__(input_dtype, output_dtype)
        name = type(self).__name__
        self.kernel_size = pair(name, "kernel_size", kernel_size, 1)
        self.stride = self.kernel_size if stride is None else pair(name, "stride", stride, 1)
        self.padding = pair(name, "padding", padding, 0)
        self.ceil_mode = ceil_mode
        self.count_include_pad = count_include_pad

    @classmethod
    def from_float(cls, module: nn.AvgPool2d, input: InputRange) -> Int8AvgPool2d:
        """The same pooling of an input with the calibrated range `input`.

        Raises:
            ValueError: a layer with a divisor of its own.
        """
        if module.divisor_override is not None:
            _check.fail("Int8AvgPool2d", f"divisor_override is {module.divisor_override}, accepted is None")
        windows = module.kernel_size, module.stride, module.padding, module.ceil_mode, module.count_include_pad
        made = cls(*windows)
        made.set_input(input.scale, input.zero_point, input.dtype)
        return made.train(module.training)

    def to_float(self) -> nn.AvgPool2d:
        """The same pooling as `nn.AvgPool2d`."""
        made = nn.AvgPool2d(self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad)
        return made.train(self.training)

    def config(self) -> dict[str, Any]:
        names = ("kernel_size", "stride", "padding")
        windows = {name: list(getattr(self, name)) for name in names}
        flags = {"ceil_mode": self.ceil_mode, "count_include_pad": self.count_include_pad}
        return windows | flags | super().config()

    def _pool(self, a: Tensor, scale: Tensor, zero_point: Tensor, out_dtype: torch.dtype) -> Tensor:
        return ops.int8_avg_pool2d(
            a, scale, zero_point, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad,
            out_dtype, self.output_scale, self.output_zero_point,
        )  # fmt: skip


class Int8AdaptiveAvgPool2d(_Average):
    """`nn.AdaptiveAvgPool2d` of int8 activations, a global average with an output size of 1.

    Args:
        output_size: (OH, OW), or one number for both; None keeps the input's. Where it divides the input's size, the
            sums are exact; elsewhere the windows overlap, and the dequantized input is pooled in floats.
        input_dtype, output_dtype: as in `Int8AvgPool2d`.

    Shape: x [N, C, H, W] float, or of the input dtype; any strides. Returns [N, C, OH, OW].

    Equivalent to `nn.AdaptiveAvgPool2d` of the fake-quantized input.
    """

    def __init__(
        self,
        output_size: int | Sequence[int | None] | None,
        input_dtype: str = "uint8",
        output_dtype: str = "float32",
    ) -> None:
        super().__init__(input_dtype, output_dtype)
        both = tuple(output_size) if isinstance(output_size, Sequence) else (output_size, output_size)
        if len(both) != 2 or any(size is not None and size < 1 for size in both):
            _check.fail(
                type(self).__name__,
                f"output_size is {output_size}, accepted are one or two integers of at least 1, or None",
            )
        self.output_size = both

    @classmethod
    def from_float(cls, module: nn.AdaptiveAvgPool2d, input: InputRange) -> Int8AdaptiveAvgPool2d:
        """The same pooling of an input with the calibrated range `input`."""
        made = cls(module.output_size)
        made.set_input(input.scale, input.zero_point, input.dtype)
        return made.train(module.training)

    def to_float(self) -> nn.AdaptiveAvgPool2d:
        """The same pooling as `nn.AdaptiveAvgPool2d`."""
        return nn.AdaptiveAvgPool2d(self.output_size).train(self.training)

    def config(self) -> dict[str, Any]:
        return {"output_size": list(self.output_size)} | super().config()

    def _pool(self, a: Tensor, scale: Tensor, zero_point: Tensor, out_dtype: torch.dtype) -> Tensor:
        height, width = a.shape[2:]
        oh, ow = (size or whole for size, whole in zip(self.output_size, (height, width), strict=True))
        if height % oh == 0 and width % ow == 0:
            kernel = height // oh, width // ow
            return ops.int8_avg_pool2d(
                a, scale, zero_point, kernel, out_dtype=out_dtype, scale_out=self.output_scale,
                zero_point_out=self.output_zero_point,
            )  # fmt: skip
        y = F.adaptive_avg_pool2d((a.to(torch.int32) - zero_point).to(torch.float32) * scale, (oh, ow))
        if self.output_scale is None:
            return y.to(out_dtype)
        return quantize_int8(y, self.output_scale, self.output_zero_point, out_dtype)
