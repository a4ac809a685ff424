"""Checks of quantize_int8 on a real device: bits and strides are those of the reference on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gpu_items import Item
from torchaccel import ops
from torchaccel.ops.quantize_int8 import _dynamic_reference, _static_reference

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
INT8 = (torch.int8, torch.uint8)
# Around each kernel's limits: packs of 4 and 8, a warp's and a block's registers, and what no longer fits them.
WIDTHS = (1, 3, 4, 7, 8, 31, 32, 64, 127, 256, 511, 512, 516, 1000, 1024, 1032, 4096, 8192, 8196, 16384, 16392, 40001)


def items(device: torch.device, quick: bool) -> list[Item]:
    both = ("quantize_int8", "quantize_int8_dynamic")
    return [
        Item("quantize_int8: random", lambda: _static(device, quick), both[:1]),
        Item("quantize_int8_dynamic: random", lambda: _dynamic(device, quick), both[1:]),
        Item("quantize: NaN, infinities and extremes", lambda: _special(device), both),
        Item("quantize: strides, offsets, empty", lambda: _layouts(device), both),
    ]


def _inputs(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * 3 + 0.5).to(dtype)


def same(name: str, got: Tensor, want: Tensor) -> None:
    got = got.cpu()
    if got.shape != want.shape or got.dtype != want.dtype:
        raise AssertionError(f"{name}: {got.dtype} {tuple(got.shape)}, not {want.dtype} {tuple(want.shape)}")
    different = ~((got == want) | (got.isnan() & want.isnan())) if want.is_floating_point() else got != want
    if different.any():
        where = tuple(different.nonzero()[0].tolist())
        raise AssertionError(f"{name}: {int(different.sum())} differ, at {where}: {got[where]} for {want[where]}")


def check_static(name: str, x: Tensor, scale: float, zero_point: int | None, dtype: torch.dtype) -> None:
    """One call of `quantize_int8` on the device of `x`; bits and strides must be the reference's."""
    scales = torch.tensor([scale])
    shift = None if zero_point is None else torch.tensor([zero_point], dtype=torch.int32)
    got = ops.quantize_int8(x, scales.to(x.device), None if shift is None else shift.to(x.device), dtype)
    want = _static_reference(x.cpu(), scales, shift, dtype)
    same(name, got, want)
    expected = torch.empty_like(x, dtype=dtype).stride()
    if got.stride() != expected:
        raise AssertionError(f"{name}: strides {got.stride()}, not {expected}")


def check_dynamic(name: str, x: Tensor, dtype: torch.dtype) -> None:
    """One call of `quantize_int8_dynamic` on the device of `x`."""
    for part, got, want in zip(
        ("q", "scale", "zero_point"),
        ops.quantize_int8_dynamic(x, dtype),
        _dynamic_reference(x.cpu(), dtype),
        strict=True,
    ):
        same(f"{name} {part}", got, want)


def _cases(quick: bool) -> Iterator[tuple[torch.dtype, torch.dtype, int, int]]:
    for source in FLOATS:
        for target in INT8:
            for seed, width in enumerate(WIDTHS):
                yield source, target, width, seed
                if quick and seed == 6:
                    break


def _static(device: torch.device, quick: bool) -> None:
    for source, target, width, seed in _cases(quick):
        zero_point = (None, 7, 300)[seed % 3]
        x = _inputs((5, width), source, seed).to(device)
        check_static(f"{source} [5, {width}]", x, 0.037, zero_point, target)
    x = _inputs((3, 1_000_003), torch.float32, 1).to(device)
    check_static("float32 [3, 1000003]", x, 0.02, -3, torch.int8)


def _dynamic(device: torch.device, quick: bool) -> None:
    for source, target, width, seed in _cases(quick):
        check_dynamic(f"{source} [19, {width}]", _inputs((19, width), source, seed).to(device), target)


def _special(device: torch.device) -> None:
    largest = torch.finfo(torch.float32).max
    values = [float("nan"), float("inf"), -float("inf"), largest, -largest, 1e-45, -1e-45, 0.0, -0.0, 0.5, 1.5, 2.5]
    for width in (12, 1024, 40001):
        x = _inputs((len(values) + 1, width), torch.float32, width)
        for row, value in enumerate(values):
            x[row, (row * 7919) % width] = value
        x[-1] = 0.0
        x[3] = x[3].abs()  # a range that only the halved subtraction holds
        x[3, 0], x[3, width - 1] = largest, -largest
        for target in INT8:
            check_dynamic(f"special [{width}]", x.to(device), target)
            check_static(f"special [{width}]", x.to(device), 0.5, 3, target)


def _layouts(device: torch.device) -> None:
    base = _inputs((4, 6, 10, 14), torch.float32, 3).to(device)
    views = {
        "channels_last": base.to(memory_format=torch.channels_last),
        "transposed": base.transpose(1, 3),
        "offset": base.view(-1)[1:].view(1, -1),
        "gaps": base[:, :, ::2, 1:-1],
        "expanded": base[:1].expand(4, -1, -1, -1),
        "no rows": base[:0],
        "no columns": base[..., :0],
        "one": base[:1, :1, :1, :1],
    }
    for name, x in views.items():
        for target in INT8:
            check_static(name, x, 0.03, 2, target)
            check_dynamic(name, x, target)
