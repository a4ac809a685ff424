"""The CUDA kernels of quantize_int8, run on the CPU by csrc/cuda/emulate: bits, bounds, alignment, deadlocks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from harness import MACHINES, Kernels, compiled, output
from torchaccel.ops.quantize_int8 import _dynamic_reference, _static_reference

SOURCES = {torch.float32: b"f", torch.float16: b"h", torch.bfloat16: b"b"}
TARGETS = {torch.int8: b"s", torch.uint8: b"u"}
# Around each limit of the kernels: packs of 4 and 8, a warp's and a block's registers, and what no longer fits.
WIDTHS = {
    torch.float32: (0, 1, 3, 4, 31, 128, 130, 512, 513, 516, 8192, 8195, 8196),
    torch.float16: (1, 8, 12, 127, 1024, 1032, 1033),
    torch.bfloat16: (1, 8, 9, 255, 1024, 16384, 16392),
}


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return compiled("quantize_int8")


def check_rows(kernels: Kernels, x: Tensor, target: torch.dtype) -> None:
    rows, k = x.shape
    want = _dynamic_reference(x, target)
    for machine in MACHINES:
        q, scale = torch.empty(rows, k, dtype=target), torch.empty(rows)
        zero_point = torch.empty(rows, dtype=torch.int32)
        outputs = map(output, (q, scale, zero_point))
        kernels.run("quantize_rows", SOURCES[x.dtype], TARGETS[target], x, *outputs, rows, k, machine=machine)
        assert torch.equal(q, want[0])
        assert torch.equal(scale.view(torch.int32)[~scale.isnan()], want[1].view(torch.int32)[~want[1].isnan()])
        assert torch.equal(scale.isnan(), want[1].isnan()) and torch.equal(zero_point, want[2])


def check_tensor(kernels: Kernels, x: Tensor, scale: float, zero_point: int | None, target: torch.dtype) -> None:
    scales = torch.tensor([scale])
    shift = None if zero_point is None else torch.tensor([zero_point], dtype=torch.int32)
    want = _static_reference(x, scales, shift, target)
    for machine in MACHINES:
        q = torch.empty_like(x, dtype=target)
        types = SOURCES[x.dtype], TARGETS[target]
        kernels.run("quantize_tensor", *types, x, output(q), scales, shift, x.numel(), machine=machine)
        assert torch.equal(q, want)


def cases() -> Iterator[tuple[torch.dtype, int]]:
    for source, widths in WIDTHS.items():
        for width in widths:
            yield source, width


def sample(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3 + 0.5).to(dtype)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source, width", list(cases()))
def test_rows(kernels: Kernels, source: torch.dtype, width: int, target: torch.dtype) -> None:
    check_rows(kernels, sample(11 if width < 2000 else 2, width, dtype=source, seed=width), target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source, width", list(cases()))
def test_whole_tensors(kernels: Kernels, source: torch.dtype, width: int, target: torch.dtype) -> None:
    if width:
        check_tensor(kernels, sample(2, width, dtype=source, seed=width), 0.037, (None, 7, 300)[width % 3], target)


@pytest.mark.parametrize("target", TARGETS)
def test_special_values(kernels: Kernels, target: torch.dtype) -> None:
    largest = torch.finfo(torch.float32).max
    values = [float("nan"), float("inf"), -float("inf"), largest, -largest, 1e-45, 0.0, -0.0, 0.5, 1.5, -2.5]
    for width in (12, 128, 516):
        x = sample(len(values) + 2, width)
        x[torch.arange(len(values)), torch.arange(len(values)) * 7919 % width] = torch.tensor(values)
        x[-2] = 0.0
        x[-1, 0], x[-1, -1] = largest, -largest
        check_rows(kernels, x, target)
        check_tensor(kernels, x, 0.5, 3, target)
        check_tensor(kernels, x, 1e-30, None, target)


def test_halves_between_two_steps_go_to_the_even_one(kernels: Kernels) -> None:
    check_tensor(kernels, torch.arange(-300, 300) / 4, 0.5, None, torch.int8)


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_unaligned_inputs(kernels: Kernels, offset: int) -> None:
    for dtype in SOURCES:
        memory = sample(3 * 128 + offset, dtype=dtype)
        check_rows(kernels, memory[offset:].view(3, 128), torch.int8)
        check_tensor(kernels, memory[offset:], 0.02, 1, torch.uint8)


def test_more_rows_than_one_block_takes(kernels: Kernels) -> None:
    check_rows(kernels, sample(100, 5), torch.uint8)
    check_tensor(kernels, sample(5, 3001), 0.02, None, torch.int8)
