"""Int8ConvTranspose2d: a transposed convolution whose windows do not overlap, with int8 weights and activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchaccel import ops
from torchaccel.nn import _weights
from torchaccel.nn._int8_conv import Int8Conv
from torchaccel.nn._ranged import name_of
from torchaccel.nn._transposed import of_places, spread
from torchaccel.nn.input_range import InputRange
from torchaccel.nn.int8_linear import dynamic_dtype
from torchaccel.ops import _check, blocks
from torchaccel.ops.int8_conv2d import supports


class Int8ConvTranspose2d(Int8Conv):
    """`nn.ConvTranspose2d` with a stride as large as its kernel: each pixel becomes a square of them.

    It is a 1x1 convolution with output channels for each place of the square, by the op of those.

    Args:
        in_channels, out_channels: as in `nn.ConvTranspose2d`.
        kernel_size: of the square, and the stride.
        Others: see `Int8Module`; a dynamic input has one scale per image. There is no residual.

    Shape: x [N, C, H, W] float, or of the input dtype when the input is static; any strides. Returns
    [N, O, kernel_size * H, kernel_size * W], channels_last.

    Equivalent to `nn.ConvTranspose2d` with fake-quantized weight (per output channel and place) and input.
    """

    op = "int8_conv2d"
    weight: Tensor  # [places * O, C, 1, 1]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        bias: bool = True,
        activation: str = "none",
        input: str = "static",
        input_dtype: str = "uint8",
        output_dtype: str = "float32",
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, kernel_size, 0, 1, 1, bias,
            activation, input, input_dtype, output_dtype, False,
        )  # fmt: skip
        rows = out_channels * kernel_size**2
        self.register_buffer("weight", torch.zeros(rows, in_channels, 1, 1, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(rows))
        self.register_buffer("bias", torch.zeros(rows) if bias else None)

    @classmethod
    def from_float(cls, module: nn.ConvTranspose2d, input: InputRange | None = None) -> Int8ConvTranspose2d:
        """Quantize a layer; `input` is the calibrated range of its input, None finds one per image at each call.

        Raises:
            ValueError: a stride other than its kernel, which must be square, or padding, dilation or groups.
        """
        weight = of_places("Int8ConvTranspose2d", module)
        dtype = dynamic_dtype(module.in_channels) if input is None else input.dtype
        with torch.device(weight.device):
            out = cls(
                module.in_channels,
                module.out_channels,
                module.kernel_size[0],
                module.bias is not None,
                input="dynamic" if input is None else "static",
                input_dtype=name_of(dtype),
            )
        out.weight, scale = _weights.quantize_weight("Int8ConvTranspose2d", weight)
        bias = None if module.bias is None else module.bias.detach().repeat(len(scale) // module.out_channels)
        out._set_from_float(scale, bias, input)
        out.pack()
        return out.train(module.training)

    def to_float(self) -> nn.ConvTranspose2d:
        """`nn.ConvTranspose2d` with the dequantized weight and bias; without the fused activation."""
        rows = _weights.dequantize_weight(self.weight, self.scale)
        weight = rows.view(*self.kernel_size, self.out_channels, self.in_channels).permute(3, 2, 0, 1)
        sizes = self.in_channels, self.out_channels, self.kernel_size, self.stride
        bias = None if self.bias is None else self.bias[: self.out_channels]
        return _weights.float_layer(nn.ConvTranspose2d, *sizes, weight=weight, bias=bias, training=self.training)

    def config(self) -> dict[str, Any]:
        made = super().config() | {"kernel_size": self.kernel_size[0]}
        return {name: made[name] for name in made if name not in ("stride", "padding", "dilation", "int8_residual")}

    def fold_affine(self, gamma: Tensor, beta: Tensor) -> None:
        squares = self.kernel_size[0] ** 2
        super().fold_affine(gamma.repeat(squares), beta.repeat(squares))

    def pack(self) -> None:
        self.colsum = self.weight.sum((1, 2, 3), dtype=torch.int32)
        self.packed = ops.pack_int8(blocks.matrix_of(self.weight), 1, self.in_channels, False)

    def limits(self, device: torch.device) -> str | None:
        return supports(device, kernel_size=(1, 1), out_dtype=self.output_dtype, groups=1)

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:  # type: ignore[override]
        """[N, C, H, W] as [N, O, k * H, k * W], or a little larger, as `nn.ConvTranspose2d` takes `output_size`."""
        y = super().forward(input)
        return y if output_size is None else self._extended(y, input, list(output_size))

    def _extended(self, y: Tensor, x: Tensor, size: list[int]) -> Tensor:
        """The output with rows and columns behind the squares, which no pixel reaches: what an input of zeros gives."""
        h, w = y.shape[-2:]
        if len(size) == 4:
            size = size[2:]
        k = self.kernel_size[0]
        if len(size) != 2 or not (h <= size[0] < h + k and w <= size[1] < w + k):
            accepted = f"accepted are {(h, w)} to {(h + k - 1, w + k - 1)}"
            _check.fail(type(self).__name__, f"output_size is {tuple(size)}, {accepted}")
        if [h, w] == size:
            return y
        given = self.input_range()
        zero = 0.0 if x.is_floating_point() or given is None else given.zero_point
        edge = super().forward(torch.full_like(x[:1, :, :1, :1], zero))[..., :1, :1]
        whole = edge.expand(*y.shape[:2], *size).contiguous(memory_format=torch.channels_last)
        whole[..., :h, :w] = y
        return whole

    def _call(
        self, a: Tensor, scale_a: Tensor, zero_point: Tensor, residual: Tensor | None, out_dtype: torch.dtype
    ) -> Tensor:
        b = self._fast()
        y = ops.int8_conv2d(
            a, b["weight"], scale_a, b["scale"], zero_point, b["bias"], None, None, None,
            (1, 1), (0, 0), (1, 1), 1, self.activation, out_dtype,
            b["output_scale"], b["output_zero_point"], b["colsum"], b["packed"],
        )  # fmt: skip
        return spread(y, self.kernel_size[0])

    def extra_repr(self) -> str:
        return f"{self._repr_head()}, {self._repr_tail()}"
