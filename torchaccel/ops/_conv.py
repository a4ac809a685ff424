"""Shapes and layouts that the convolution ops share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from torchaccel.ops import _check


def output_size(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[int, int]:
    """(OH, OW) of a convolution over (H, W)."""
    height, width = (
        (s + 2 * p - d * (k - 1) - 1) // st + 1
        for s, k, st, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    )
    return height, width


def too_large(kernel_size: Sequence[int]) -> str | None:
    """Why the CUDA kernels do not take a kernel of this size, or None: they keep one bit for each row and column."""
    if max(kernel_size) > 15:
        return f"the CUDA kernel takes kernels of up to 15x15, not {kernel_size[0]}x{kernel_size[1]}"
    return None


def empty_nhwc(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """[N, C, H, W] in channels_last."""
    return torch.empty(shape, dtype=dtype, device=device, memory_format=torch.channels_last)


def is_nhwc(x: Tensor) -> bool:
    """Whether `x` is in channels_last and not contiguous as well."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def as_nhwc(x: Tensor) -> Tensor:
    """`x` in channels_last, copied only where it is not."""
    return x.contiguous(memory_format=torch.channels_last)


def rows(x: Tensor) -> Tensor:
    """[N, C, H, W] as [N * H * W, C]."""
    return x.permute(0, 2, 3, 1).reshape(x.numel() // x.shape[1] if x.shape[1] else 0, x.shape[1])


def from_rows(y: Tensor, n: int, height: int, width: int) -> Tensor:
    """[N * H * W, C] as [N, C, H, W] with channels_last strides, also where sizes of 1 leave them ambiguous."""
    out = empty_nhwc((n, y.shape[1], height, width), y.dtype, y.device)
    return out.copy_(y.view(n, height, width, y.shape[1]).permute(0, 3, 1, 2))


def per_pixel(value: Tensor, pixels: int) -> Tensor:
    """[1] or [N] values, one per image, as [1] or [N * pixels]."""
    return value if value.numel() == 1 else value.repeat_interleave(pixels)


def exact_conv(
    a: Tensor,  # [N, C, H, W] int8 or uint8
    b: Tensor,  # [O, C / groups, kh, kw] int8
    zero_point: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """int32 sums of a convolution whose padding holds the zero point; exact, since float64 carries them."""
    wide = a.to(torch.float64)
    if any(padding):
        shift = 0.0 if zero_point is None else zero_point.view(-1, 1, 1, 1).to(torch.float64)
        wide = F.pad(wide - shift, (padding[1], padding[1], padding[0], padding[0])) + shift
    if 0 in a.shape or 0 in b.shape:
        size = output_size(a.shape[2:], b.shape[2:], stride, padding, dilation)
        return a.new_zeros((a.shape[0], b.shape[0], *size), dtype=torch.int32)
    return F.conv2d(wide, b.to(torch.float64), None, stride, 0, dilation, groups).to(torch.int32)


def check(
    op: str,
    x: Tensor,
    channels: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int]:
    """Check the input and the geometry; returns (OH, OW)."""
    if x.dim() != 4 or x.shape[1] != channels:
        _check.fail(op, f"the input has shape {tuple(x.shape)}, accepted is [N, {channels}, H, W]")
    for name, pair, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        if len(pair) != 2 or min(pair) < least:
            _check.fail(op, f"{name} is {tuple(pair)}, accepted are two integers of at least {least}")
    size = output_size(x.shape[2:], kernel, stride, padding, dilation)
    if min(size) < 1:
        given = f"a kernel of {tuple(kernel)} with dilation {tuple(dilation)}"
        _check.fail(op, f"{given} does not fit an input of {tuple(x.shape[2:])}")
    return size


def check_residual(
    op: str, x: Tensor, shape: tuple[int, ...], residual: Tensor | None, scale: Tensor | None, zero_point: Tensor | None
) -> None:
    """The residual has the output's shape: float as it is, int8 with its scale."""
    if residual is None:
        return
    _check.device_of(op, x, residual=residual, scale_residual=scale, zero_point_residual=zero_point)
    _check.sizes(op, "residual", residual, shape)
    if (residual.dtype in _check.INT8) != (scale is not None):
        given = "without" if scale is None else "with"
        _check.fail(
            op, f"residual is {residual.dtype} {given} scale_residual; int8 and uint8 need one, float types take none"
        )
    _check.sizes(op, "scale_residual", scale, (1,))
    _check.sizes(op, "zero_point_residual", zero_point, (1,))
