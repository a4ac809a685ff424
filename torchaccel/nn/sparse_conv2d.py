"""SparseConv2d: a float convolution with pruned weights, kept in blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchaccel import ops
from torchaccel.nn import _blocks, _inference, _weights
from torchaccel.nn._packed import PackedModule
from torchaccel.ops import _check, blocks
from torchaccel.ops.sparse_conv2d import pack_sparse, supports

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in _check.FLOATS}


class SparseConv2d(PackedModule):
    """`y = act(conv2d(x, weight) + bias + residual)` in float, where pruned blocks cost nothing.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation: as in `nn.Conv2d`, in integers; one group.
        bias: whether there is one.
        activation: "none", "relu", "relu6", "gelu" or "silu", applied last.
        pattern: one of `ops.blocks.BLOCKS`, such as "1x4" or "tile".
        blocks: how many blocks are kept.
        dtype: of the weights: "float32", "float16" or "bfloat16".

    Shape: x [N, C, H, W] of the weights' dtype, any strides. Returns [N, O, OH, OW], channels_last; on a CPU
    contiguous, unless x is channels_last.

    Equivalent to `nn.Conv2d` with the dense weight.
    """

    op = "sparse_conv2d"
    derived = _blocks.TILES
    keeps_float32 = False
    values: Tensor
    columns: Tensor
    row_offsets: Tensor
    bias: Tensor | None
    packed: Tensor | None
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
        pattern: str = "1x4",
        blocks: int = 0,
        dtype: str = "float32",
    ) -> None:
        super().__init__()
        name = "SparseConv2d"
        _check.known_activation(name, activation)
        if dtype not in _DTYPES:
            _check.fail(name, f"dtype is {dtype!r}, accepted are {', '.join(_DTYPES)}")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _weights.pair(name, "kernel_size", kernel_size, 1)
        self.stride = _weights.pair(name, "stride", stride, 1)
        self.padding = _weights.pair(name, "padding", padding, 0)
        self.dilation = _weights.pair(name, "dilation", dilation, 1)
        self.activation = activation
        self.pattern = pattern
        self.grid = _blocks.block_grid(name, pattern, out_channels, in_channels, self.kernel_size)
        values, columns, row_offsets = _blocks.empty(name, pattern, blocks, self.grid, _DTYPES[dtype])
        self.register_buffer("values", values)
        self.register_buffer("columns", columns)
        self.register_buffer("row_offsets", row_offsets)
        self.register_buffer("bias", torch.zeros(out_channels, dtype=_DTYPES[dtype]) if bias else None)
        for derived in self.derived:
            self.register_buffer(derived, None, persistent=False)

    @classmethod
    def from_float(cls, module: nn.Conv2d, pattern: str = "1x4") -> SparseConv2d:
        """Compress a pruned convolution; blocks of zeros are dropped.

        Raises:
            ValueError: groups, channels that do not fit the pattern, padding other than equal zeros, or weights of
                another dtype.
        """
        _check.dtype_in("SparseConv2d", "weight", module.weight.dtype, _check.FLOATS)
        if module.groups != 1:
            _check.fail("SparseConv2d", f"groups is {module.groups}, accepted is 1")
        settings = _weights.conv_settings("SparseConv2d", module)
        with torch.device(module.weight.device):
            out = cls(**settings, pattern=pattern, dtype=str(module.weight.dtype).removeprefix("torch."))
        out.values, out.columns, out.row_offsets = blocks.to_blocks(module.weight.detach(), pattern)
        if module.bias is not None:
            out.bias = module.bias.detach().clone()
        out.pack()
        return out.train(module.training)

    def to_float(self) -> nn.Conv2d:
        """`nn.Conv2d` with the dense weight and bias; without the fused activation and residual."""
        weight = blocks.from_blocks(self.values, self.columns, self.row_offsets, self.in_channels, self.kernel_size)
        sizes = (self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, self.dilation)
        return _weights.float_layer(nn.Conv2d, *sizes, weight=weight, bias=self.bias, training=self.training)

    def config(self) -> dict[str, Any]:
        return {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "kernel_size": list(self.kernel_size),
            "stride": list(self.stride),
            "padding": list(self.padding),
            "dilation": list(self.dilation),
            "bias": self.bias is not None,
            "activation": self.activation,
            "pattern": self.pattern,
            "blocks": self.values.shape[0],
            "dtype": str(self.values.dtype).removeprefix("torch."),
        }

    def pack(self) -> None:
        weight = self.values, self.columns, self.row_offsets
        _blocks.set_tiles(self, pack_sparse(*weight, self.in_channels, self.kernel_size))

    def limits(self, device: torch.device) -> str | None:
        return supports(device, dtype=self.values.dtype, in_channels=self.in_channels, kernel_size=self.kernel_size)

    def no_gain(self) -> str | None:
        """Why pruning saves nothing as the weights are packed for this device, or None."""
        return _blocks.why_no_gain(self.packed, self.tile_columns)

    def check_state(self, state: dict[str, Tensor]) -> None:
        _blocks.check_state("SparseConv2d", state, self.grid[1])

    def fuse_activation(self, name: str) -> None:
        """Apply an activation ("relu", "relu6", "gelu", "silu") as the last step, in the same pass."""
        _check.known_activation("SparseConv2d", name)
        if self.activation != "none":
            _check.fail("SparseConv2d", f"activation is already {self.activation!r}, cannot fuse {name!r} after it")
        self.activation = name

    @property
    def sparsity(self) -> float:
        """The share of the weights that is pruned, 0 to 1."""
        return 1.0 - self.values.shape[0] / (self.grid[0] * self.grid[1])

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Convolve [N, C, H, W]; `residual` [N, O, OH, OW] is added before the activation."""
        x = input  # named as in the layer that this one stands in for
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            _check.fail("SparseConv2d", f"x has shape {tuple(x.shape)}, accepted is [N, {self.in_channels}, H, W]")
        guarded = _inference.needs_guard(x, residual)
        source = x.detach() if guarded else x
        added = residual.detach() if guarded and residual is not None else residual
        y = ops.sparse_conv2d(
            source, self.values, self.columns, self.row_offsets, self.kernel_size, self.bias, added,
            self.stride, self.padding, self.dilation, self.activation,
            self.packed, self.tile_columns, self.tile_offsets,
        )  # fmt: skip
        return _inference.guard(y, x, residual) if guarded else y

    def extra_repr(self) -> str:
        kernel = "native" if self.unsupported(self.values.device) is None else "reference"
        activation = "" if self.activation == "none" else f", activation={self.activation}"
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}{activation}, bias={self.bias is not None}, "
            f"pattern={self.pattern}, sparsity={self.sparsity:.3f}, kernel={kernel}"
        )
