"""SparseInt8Conv2d: a convolution with pruned int8 weights, kept in blocks, and int8 activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchaccel import ops
from torchaccel.nn import _blocks, _weights
from torchaccel.nn._int8_conv import Int8Conv
from torchaccel.nn._ranged import name_of
from torchaccel.nn.input_range import InputRange
from torchaccel.nn.int8_linear import dynamic_dtype
from torchaccel.ops import _check, blocks
from torchaccel.ops.sparse_int8_conv2d import colsum_of, pack_sparse_int8, supports


class SparseInt8Conv2d(Int8Conv):
    """`y = act(conv2d(x, weight) + bias + residual)` with pruned int8 weights: blocks of zeros cost nothing.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation: as in `nn.Conv2d`, in integers; one group.
        pattern: one of `ops.blocks.BLOCKS`, such as "1x4" or "tile".
        blocks: how many blocks are kept.
        Others: see `Int8Module`; a dynamic input has one scale per image.

    Shape: x [N, C, H, W] float, or of the input dtype when the input is static; any strides. Returns [N, O, OH, OW],
    channels_last.

    Equivalent to `Int8Conv2d` with the same weight; the sums are the same to the bit.
    """

    op = "sparse_int8_conv2d"
    derived = ("colsum", *_blocks.TILES)
    values: Tensor
    columns: Tensor
    row_offsets: Tensor
    tile_columns: Tensor | None
    tile_offsets: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        bias: bool = True,
        activation: str = "none",
        input: str = "static",
        input_dtype: str = "uint8",
        output_dtype: str = "float32",
        int8_residual: bool = False,
        pattern: str = "1x4",
        blocks: int = 0,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, 1, bias,
            activation, input, input_dtype, output_dtype, int8_residual,
        )  # fmt: skip
        self.pattern = pattern
        self.grid = _blocks.block_grid("SparseInt8Conv2d", pattern, out_channels, in_channels, self.kernel_size)
        values, columns, row_offsets = _blocks.empty("SparseInt8Conv2d", pattern, blocks, self.grid, torch.int8)
        self.register_buffer("values", values)
        self.register_buffer("columns", columns)
        self.register_buffer("row_offsets", row_offsets)

    @classmethod
    def from_float(cls, module: nn.Conv2d, pattern: str = "1x4", input: InputRange | None = None) -> SparseInt8Conv2d:
        """Quantize and compress a pruned convolution; blocks of zeros are dropped.

        Args:
            module: the convolution, one group.
            pattern: one of `ops.blocks.BLOCKS`.
            input: the calibrated range of its input; None finds one per image at each call.

        Raises:
            ValueError: groups, channels that do not fit the pattern, padding other than equal zeros, weights that are
                not finite, or more products per output than int32 sums can hold.
        """
        if module.groups != 1:
            _check.fail("SparseInt8Conv2d", f"groups is {module.groups}, accepted is 1")
        settings = _weights.conv_settings("SparseInt8Conv2d", module)
        dtype = dynamic_dtype(module.weight[0].numel()) if input is None else input.dtype
        with torch.device(module.weight.device):
            out = cls(
                **settings,
                input="dynamic" if input is None else "static",
                input_dtype=name_of(dtype),
                pattern=pattern,
            )
        q, scale = _weights.quantize_weight("SparseInt8Conv2d", module.weight)
        out.values, out.columns, out.row_offsets = blocks.to_blocks(q, pattern)
        out._set_from_float(scale, module.bias, input)
        out.pack()
        return out.train(module.training)

    def to_float(self) -> nn.Conv2d:
        """`nn.Conv2d` with the dequantized, dense weight and bias; without the fused activation and residual."""
        q = blocks.from_blocks(self.values, self.columns, self.row_offsets, self.in_channels, self.kernel_size)
        weight = _weights.dequantize_weight(q, self.scale)
        sizes = (self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, self.dilation)
        return _weights.float_layer(nn.Conv2d, *sizes, weight=weight, bias=self.bias, training=self.training)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "pattern": self.pattern, "blocks": self.values.shape[0]}

    def pack(self) -> None:
        weight = self.values, self.columns, self.row_offsets
        self.colsum = colsum_of(self.values, self.row_offsets)
        _blocks.set_tiles(self, pack_sparse_int8(*weight, self.in_channels, self.kernel_size))

    def limits(self, device: torch.device) -> str | None:
        block = blocks.block_of(self.pattern)
        return supports(device, block=block, kernel_size=self.kernel_size, out_dtype=self.output_dtype)

    def no_gain(self) -> str | None:
        """Why pruning saves nothing as the weights are packed for this device, or None."""
        return _blocks.why_no_gain(self.packed, self.tile_columns)

    def check_state(self, state: dict[str, Tensor]) -> None:
        super().check_state(state)
        _blocks.check_state("SparseInt8Conv2d", state, self.grid[1])

    @property
    def sparsity(self) -> float:
        """The share of the weights that is pruned, 0 to 1."""
        return 1.0 - self.values.shape[0] / (self.grid[0] * self.grid[1])

    def _call(
        self, a: Tensor, scale_a: Tensor, zero_point: Tensor, residual: Tensor | None, out_dtype: torch.dtype
    ) -> Tensor:
        b = self._fast()
        return ops.sparse_int8_conv2d(
            a, b["values"], b["columns"], b["row_offsets"], self.kernel_size, scale_a, b["scale"], zero_point,
            b["bias"],
            residual, b["residual_scale"], b["residual_zero_point"],
            self.stride, self.padding, self.dilation, self.activation, out_dtype,
            b["output_scale"], b["output_zero_point"], b["colsum"], b["packed"], b["tile_columns"], b["tile_offsets"],
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"{self._repr_head()}, pattern={self.pattern}, sparsity={self.sparsity:.3f}, {self._repr_tail()}"
