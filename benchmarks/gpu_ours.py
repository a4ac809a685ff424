"""This package's ops at the sizes that are timed, on rotating inputs; `Made` as in gpu_baselines."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import gpu_cases as cases
from gpu_baselines import Made, integers, nhwc, random
from gpu_timing import Call, rotation
from torchaccel import ops
from torchaccel.nn import Int8LinearWeightOnly
from torchaccel.ops import blocks
from torchaccel.ops.sparse_conv2d import pack_sparse
from torchaccel.ops.sparse_int8_conv2d import pack_sparse_int8


def weights(device: torch.device, n: int, k: int, count: int, two_four: bool = False) -> list[dict[str, Tensor | None]]:
    """`count` weights as int8_linear takes them."""
    made = []
    for seed in range(count):
        b = integers((n, k), device)
        if two_four:
            b = cases.pruned(b, "2:4", seed)
        made.append({"b": b, "colsum": b.sum(1, dtype=torch.int32), "packed": ops.pack_int8(b)})
    return made


def linear(
    device: torch.device, m: int, n: int, k: int, out: torch.dtype = torch.bfloat16, two_four: bool = False
) -> Made:
    """int8_linear with a scale for each row and each channel, a zero point and a bias."""
    size = m * k + n * k * (5 if two_four else 8) // 8 + m * n * out.itemsize
    sets = weights(device, n, k, rotation(size, device), two_four)
    return linear_calls(device, m, sets, out), 2.0 * m * n * k, size


def linear_calls(
    device: torch.device, m: int, sets: list[dict[str, Tensor | None]], out: torch.dtype = torch.bfloat16
) -> list[Call]:
    """One call for each of the weights, on M rows of its own."""
    n, k = sets[0]["b"].shape  # type: ignore[union-attr]
    row = {
        "scale_a": torch.rand(m, device=device), "zero_point": torch.full((m,), 117, dtype=torch.int32, device=device),
        "scale_b": torch.rand(n, device=device), "bias": torch.rand(n, device=device), "out_dtype": out,
    }  # fmt: skip
    inputs = [torch.randint(0, 256, (m, k), dtype=torch.uint8, device=device) for _ in sets]
    return [lambda a=a, held=held: ops.int8_linear(a, **held, **row) for a, held in zip(inputs, sets, strict=True)]


def weight_only(device: torch.device, m: int, n: int, k: int, dtype: torch.dtype = torch.bfloat16) -> Made:
    """Modules hold the packed weights, so the layer is called."""
    size = n * k + (m * k + m * n) * dtype.itemsize
    calls = []
    for _ in range(rotation(size, device)):
        layer = Int8LinearWeightOnly.from_float(torch.nn.Linear(k, n, device=device))
        x = random((m, k), dtype, device)
        calls.append(lambda layer=layer, x=x: layer(x))
    return calls, 2.0 * m * n * k, size


def int8_conv(device: torch.device, batch: int, channels: int, size: int, kernel: int, pattern: str | None) -> Made:
    """The convolution of a residual block from uint8 to uint8; `pattern` keeps a quarter of its tiles."""
    shape = (batch, channels, size, size)
    moved = 3 * batch * channels * size * size + channels * channels * kernel * kernel
    weight = integers((channels, channels, kernel, kernel), device)
    if pattern is not None:
        weight = cases.pruned(weight, pattern, 1, keep=0.25)
    one, zero = torch.tensor([0.02], device=device), torch.tensor([3], dtype=torch.int32, device=device)
    kept: dict[str, Any] = {
        "scale_a": one, "scale_b": torch.rand(channels, device=device) * 0.01, "zero_point": zero,
        "bias": torch.rand(channels, device=device), "scale_residual": one, "zero_point_residual": zero,
        "padding": (kernel // 2, kernel // 2), "activation": "relu", "out_dtype": torch.uint8, "scale_out": one,
        "zero_point_out": zero, "colsum": weight.sum((1, 2, 3), dtype=torch.int32),
    }  # fmt: skip
    if pattern is None:
        kept |= {"b": weight, "packed": ops.pack_int8(blocks.matrix_of(weight), 1, channels)}
    else:
        kept |= _sparse(weight, pattern, pack_sparse_int8)
    op = ops.int8_conv2d if pattern is None else ops.sparse_int8_conv2d
    sets = [(_image(shape, device), _image(shape, device)) for _ in range(rotation(moved, device))]
    operations = 2.0 * batch * channels * channels * size * size * kernel * kernel
    return [lambda x=x, r=r: op(x, residual=r, **kept) for x, r in sets], operations, moved


def half_conv(
    device: torch.device, batch: int, channels: int, size: int, kernel: int, dtype: torch.dtype, pattern: str
) -> Made:
    shape = (batch, channels, size, size)
    moved = (3 * batch * channels * size * size + channels * channels * kernel * kernel) * dtype.itemsize
    weight = random((channels, channels, kernel, kernel), dtype, device)
    weight = cases.pruned(weight, pattern, 1, keep=0.25)
    kept = _sparse(weight, pattern, pack_sparse) | {
        "bias": random((channels,), dtype, device), "padding": (kernel // 2, kernel // 2), "activation": "relu",
    }  # fmt: skip
    sets = [
        (nhwc(random(shape, dtype, device)), nhwc(random(shape, dtype, device))) for _ in range(rotation(moved, device))
    ]
    operations = 2.0 * batch * channels * channels * size * size * kernel * kernel
    return [lambda x=x, r=r: ops.sparse_conv2d(x, residual=r, **kept) for x, r in sets], operations, moved


def _sparse(weight: Tensor, pattern: str, pack: Any) -> dict[str, Any]:
    """What the sparse ops take of a pruned weight [O, C, kh, kw]."""
    parts = blocks.to_blocks(weight, pattern)
    kernel = tuple(weight.shape[2:])
    made = pack(*parts, weight.shape[1], kernel)
    packed = {} if made is None else dict(zip(("packed", "tile_columns", "tile_offsets"), made, strict=True))
    return dict(zip(("values", "columns", "row_offsets"), parts, strict=True)) | {"kernel_size": kernel} | packed


def _image(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return nhwc(torch.randint(0, 256, shape, dtype=torch.uint8, device=device))


def quantize(device: torch.device, rows: int, k: int, dtype: torch.dtype, dynamic: bool) -> Made:
    size = rows * k * (dtype.itemsize + 1)
    scale = torch.tensor([0.03], device=device)
    inputs = [random((rows, k), dtype, device) for _ in range(rotation(size, device))]
    if dynamic:
        return [lambda x=x: ops.quantize_int8_dynamic(x) for x in inputs], 0.0, size
    return [lambda x=x: ops.quantize_int8(x, scale) for x in inputs], 0.0, size


def norm(device: torch.device, rows: int, k: int, dtype: torch.dtype) -> Made:
    size = rows * k * (dtype.itemsize + 1)
    weight = random((k,), dtype, device)
    inputs = [random((rows, k), dtype, device) for _ in range(rotation(size, device))]
    return [lambda x=x: ops.rms_norm_quantize_int8(x, weight) for x in inputs], 0.0, size


def max_pool(device: torch.device, batch: int, channels: int, size: int) -> Made:
    moved = batch * channels * (size * size + (size // 2) ** 2)
    inputs = [_image((batch, channels, size, size), device) for _ in range(rotation(moved, device))]
    return [lambda x=x: ops.int8_max_pool2d(x, (3, 3), (2, 2), (1, 1)) for x in inputs], 0.0, moved


def avg_pool(device: torch.device, batch: int, channels: int, size: int) -> Made:
    moved = batch * channels * (size * size + 4)
    scale = torch.tensor([0.03], device=device)
    inputs = [_image((batch, channels, size, size), device) for _ in range(rotation(moved, device))]
    return [lambda x=x: ops.int8_avg_pool2d(x, scale) for x in inputs], 0.0, moved


def add(device: torch.device, batch: int, channels: int, size: int) -> Made:
    moved = 3 * batch * channels * size * size
    one = torch.tensor([0.03], device=device)
    kept = {"out_dtype": torch.uint8, "scale_out": one, "activation": "relu"}
    shape = (batch, channels, size, size)
    pairs = [(_image(shape, device), _image(shape, device)) for _ in range(rotation(moved, device))]
    return [lambda x=x, y=y: ops.int8_add(x, y, one, None, one, None, **kept) for x, y in pairs], 0.0, moved
