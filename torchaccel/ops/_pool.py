"""Shapes and windows that the pooling ops share; the rules are those of `F.max_pool2d` and `F.avg_pool2d`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchaccel.ops import _check


def output_size(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> tuple[int, int]:
    """(OH, OW) of a pooling over (H, W); with `ceil_mode` a last window may hang over, if it starts inside."""
    sizes = []
    for s, k, st, p, d in zip(size, kernel, stride, padding, dilation, strict=True):
        out = (s + 2 * p - d * (k - 1) - 1 + (st - 1 if ceil_mode else 0)) // st + 1
        sizes.append(out - 1 if ceil_mode and (out - 1) * st >= s + p else out)
    return sizes[0], sizes[1]


def counts(
    size: int, out: int, kernel: int, stride: int, padding: int, include_padding: bool, device: torch.device
) -> Tensor:
    """[out] int32: how many rows each window of an average divides by; what hangs over never counts."""
    start = torch.arange(out, dtype=torch.int32, device=device) * stride - padding
    end = start + kernel
    if include_padding:
        return end.clamp(max=size + padding) - start
    return end.clamp(max=size) - start.clamp(min=0)


def check(
    op: str,
    a: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> tuple[int, int]:
    """Check the input and the windows; returns (OH, OW)."""
    _check.dtype_in(op, "a", a.dtype, _check.INT8)
    if a.dim() != 4:
        _check.fail(op, f"a has shape {tuple(a.shape)}, accepted is [N, C, H, W]")
    for name, pair, least in (
        ("kernel_size", kernel, 1), ("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1),
    ):  # fmt: skip
        if len(pair) != 2 or min(pair) < least:
            _check.fail(op, f"{name} is {tuple(pair)}, accepted are two integers of at least {least}")
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        _check.fail(op, f"padding is {tuple(padding)}, accepted is at most half of the kernel size {tuple(kernel)}")
    size = output_size(a.shape[2:], kernel, stride, padding, dilation, ceil_mode)
    if min(size) < 1:
        given = f"a window of {tuple(kernel)} with dilation {tuple(dilation)}"
        _check.fail(op, f"{given} does not fit an input of {tuple(a.shape[2:])}")
    return size
