"""What the int8 ops mean, in numpy, written apart from the package: int64 sums, then float32 one step at a time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

F32 = np.float32


def array(t: Tensor | None) -> np.ndarray | None:
    return None if t is None else t.detach().cpu().numpy()


def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[M, K] x [N, K] in int64."""
    return a.astype(np.int64) @ b.astype(np.int64).T


def windows(a: np.ndarray, kernel, stride, padding, dilation, fill: np.ndarray) -> np.ndarray:
    """[N, C, H, W] as [N, OH, OW, C, kh, kw] in int64; padding holds `fill` [N]."""
    n, c, h, w = a.shape
    wide = np.empty((n, c, h + 2 * padding[0], w + 2 * padding[1]), np.int64)
    wide[:] = fill.reshape(-1, 1, 1, 1)
    wide[:, :, padding[0] : padding[0] + h, padding[1] : padding[1] + w] = a
    out = [
        (s - d * (k - 1) - 1) // st + 1 for s, k, st, d in zip(wide.shape[2:], kernel, stride, dilation, strict=True)
    ]
    result = np.empty((n, *out, c, *kernel), np.int64)
    for y in range(kernel[0]):
        for x in range(kernel[1]):
            rows = slice(y * dilation[0], y * dilation[0] + stride[0] * (out[0] - 1) + 1, stride[0])
            columns = slice(x * dilation[1], x * dilation[1] + stride[1] * (out[1] - 1) + 1, stride[1])
            result[..., y, x] = wide[:, :, rows, columns].transpose(0, 2, 3, 1)
    return result


def conv(a: np.ndarray, b: np.ndarray, kernel, stride, padding, dilation, groups: int, fill: np.ndarray) -> np.ndarray:
    """[N, OH, OW, O] int64."""
    seen = windows(a, kernel, stride, padding, dilation, fill)
    per_in, per_out = a.shape[1] // groups, b.shape[0] // groups
    parts = []
    for g in range(groups):
        x = seen[..., g * per_in : (g + 1) * per_in, :, :]
        w = b[g * per_out : (g + 1) * per_out].astype(np.int64)
        parts.append(np.einsum("nhwckl,ockl->nhwo", x, w))
    return np.concatenate(parts, axis=-1)


def finish(
    acc: np.ndarray,  # [..., N] int64
    colsum: np.ndarray,  # [N] int64
    zero_point: np.ndarray,  # broadcasts over the leading dimensions
    scale_a: np.ndarray,  # the same
    scale_b: np.ndarray,
    bias: np.ndarray | None,
    residual: np.ndarray | None,
    relu: str,  # "none", "relu" or "relu6"
    out: tuple[np.dtype, np.ndarray, int] | None,  # dtype, scale, zero point
) -> np.ndarray:
    y = (acc - zero_point.astype(np.int64) * colsum).astype(F32)
    y = y * (scale_a.astype(F32) * scale_b.astype(F32))
    if bias is not None:
        y = y + bias.astype(F32)
    if residual is not None:
        y = y + residual.astype(F32)
    if relu != "none":
        y = np.maximum(y, F32(0))
    if relu == "relu6":
        y = np.minimum(y, F32(6))
    assert y.dtype == F32
    if out is None:
        return y
    dtype, scale, zero_point_out = out
    info = np.iinfo(dtype)
    with np.errstate(over="ignore"):
        steps = np.rint(y * (F32(1) / scale.astype(F32))).astype(np.float64) + zero_point_out
    return np.clip(steps, info.min, info.max).astype(dtype)


def equal(given: Tensor, expected: np.ndarray) -> None:
    """Equal to the bit, and of the same shape and dtype."""
    assert tuple(given.shape) == expected.shape
    assert given.numpy().dtype == expected.dtype
    torch.testing.assert_close(given.contiguous(), torch.from_numpy(np.ascontiguousarray(expected)), rtol=0, atol=0)
