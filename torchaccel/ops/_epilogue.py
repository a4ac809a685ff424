"""The epilogue that every int8 op shares, as plain PyTorch: the definition that kernels match to the bit."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "relu": torch.relu,
    "relu6": lambda y: torch.clamp(torch.relu(y), max=6.0),
    "gelu": F.gelu,
    "silu": F.silu,
}


def activate(y: Tensor, activation: str) -> Tensor:
    return _ACTIVATIONS[activation](y)


def saturate(y: Tensor, scale: Tensor, zero_point: Tensor | int, dtype: torch.dtype) -> Tensor:
    """`rint(y * float(1 / scale)) + zero_point`, half to even, saturating; NaN becomes the zero point."""
    info = torch.iinfo(dtype)
    rounded = torch.nan_to_num(torch.round(y * torch.reciprocal(scale)), nan=0.0)
    return (torch.clamp(rounded, -1024.0, 1024.0) + zero_point).clamp(info.min, info.max).to(dtype)


def finish(
    acc: Tensor,  # [rows, N] int32
    colsum: Tensor,  # [N] int32
    scale_a: Tensor,  # [1] or [rows] float32
    scale_b: Tensor,  # [N] float32
    zero_point: Tensor | None,  # [1] or [rows] int32
    bias: Tensor | None,  # [N] float32
    residual: Tensor | None,  # [rows, N] float32, or int8 with the next two
    scale_residual: Tensor | None,  # [1] float32
    zero_point_residual: Tensor | None,  # [1] int32
    activation: str,
    out_dtype: torch.dtype,
    scale_out: Tensor | None,  # [1] float32
    zero_point_out: Tensor | None,  # [1] int32
) -> Tensor:
    """`act(float(acc - zero_point * colsum) * (scale_a * scale_b) + bias + residual)` as [rows, N] of `out_dtype`.

    Each product and sum is rounded on its own, in float32.
    """
    if zero_point is not None:
        acc = acc - zero_point.view(-1, 1) * colsum
    y = acc.to(torch.float32) * (scale_a.view(-1, 1) * scale_b)
    if bias is not None:
        y = y + bias
    if residual is not None:
        if scale_residual is not None:
            offset = 0 if zero_point_residual is None else zero_point_residual
            residual = (residual.to(torch.int32) - offset).to(torch.float32) * scale_residual
        y = y + residual.to(torch.float32)
    y = activate(y, activation)
    if scale_out is None:
        return y.to(out_dtype)
    return saturate(y, scale_out, 0 if zero_point_out is None else zero_point_out, out_dtype)
