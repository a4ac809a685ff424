"""The CUDA kernels of quantize_int8, run on the CPU by csrc/cuda/emulate: bits, bounds, alignment, deadlocks."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from torchaccel.ops.quantize_int8 import _dynamic_reference, _static_reference

ROOT = Path(__file__).parents[3]
SOURCES = {torch.float32: b"f", torch.float16: b"h", torch.bfloat16: b"b"}
TARGETS = {torch.int8: b"s", torch.uint8: b"u"}
GUARD = 64  # elements on each side of an output, which no kernel may touch
# Around each limit of the kernels: packs of 4 and 8, a warp's and a block's registers, and what no longer fits.
WIDTHS = {
    torch.float32: (0, 1, 3, 4, 31, 128, 130, 512, 513, 516, 8192, 8195, 8196),
    torch.float16: (1, 8, 12, 127, 1024, 1032, 1033),
    torch.bfloat16: (1, 8, 9, 255, 1024, 16384, 16392),
}

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the emulation needs g++")


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels under UBSan, which traps a load that is not aligned (an illegal instruction)."""
    made = tmp_path_factory.mktemp("emulated") / "quantize_int8.so"
    flags = (
        "-std=c++17 -O1 -ffp-contract=off -fsanitize=undefined -fsanitize-undefined-trap-on-error -fPIC -shared".split()
    )
    include = [f"-I{ROOT / 'csrc/cuda' / folder}" for folder in ("emulate", "")]
    source = Path(__file__).with_name("quantize_int8.cpp")
    subprocess.run(["g++", *flags, *include, "-Wno-unknown-pragmas", str(source), "-o", str(made)], check=True)
    return ctypes.CDLL(str(made))


def guarded(count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """An output of `count` elements, 16-byte aligned, and the memory around it."""
    memory = torch.full((count + 2 * GUARD,), 0x5A, dtype=dtype)
    return memory[GUARD : GUARD + count], memory


def unharmed(memory: Tensor) -> bool:
    return bool((memory[:GUARD] == 0x5A).all() and (memory[-GUARD:] == 0x5A).all())


def pointer(x: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if x is None else x.data_ptr())


def check_rows(kernels: ctypes.CDLL, x: Tensor, target: torch.dtype) -> None:
    rows, k = x.shape
    outputs = [guarded(x.numel(), target), guarded(rows, torch.float32), guarded(rows, torch.int32)]
    (q, _), (scale, _), (zero_point, _) = outputs
    kernels.quantize_rows(
        ctypes.c_char(SOURCES[x.dtype]),
        ctypes.c_char(TARGETS[target]),
        *(pointer(each) for each in (x, q, scale, zero_point)),
        ctypes.c_int64(rows),
        ctypes.c_int64(k),
    )
    want = _dynamic_reference(x, target)
    assert torch.equal(q.view(rows, k), want[0])
    assert torch.equal(scale.view(torch.int32)[~scale.isnan()], want[1].view(torch.int32)[~want[1].isnan()])
    assert torch.equal(scale.isnan(), want[1].isnan()) and torch.equal(zero_point, want[2])
    assert all(unharmed(memory) for _, memory in outputs)


def check_tensor(kernels: ctypes.CDLL, x: Tensor, scale: float, zero_point: int | None, target: torch.dtype) -> None:
    q, memory = guarded(x.numel(), target)
    scales = torch.tensor([scale])
    shift = None if zero_point is None else torch.tensor([zero_point], dtype=torch.int32)
    kernels.quantize_tensor(
        ctypes.c_char(SOURCES[x.dtype]),
        ctypes.c_char(TARGETS[target]),
        *(pointer(each) for each in (x, q, scales, shift)),
        ctypes.c_int64(x.numel()),
    )
    assert torch.equal(q, _static_reference(x, scales, shift, target).view(-1)) and unharmed(memory)


def cases() -> Iterator[tuple[torch.dtype, int]]:
    for source, widths in WIDTHS.items():
        for width in widths:
            yield source, width


def sample(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3 + 0.5).to(dtype)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source, width", list(cases()))
def test_rows(kernels: ctypes.CDLL, source: torch.dtype, width: int, target: torch.dtype) -> None:
    check_rows(kernels, sample(11 if width < 2000 else 2, width, dtype=source, seed=width), target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source, width", list(cases()))
def test_whole_tensors(kernels: ctypes.CDLL, source: torch.dtype, width: int, target: torch.dtype) -> None:
    if width:
        check_tensor(kernels, sample(2, width, dtype=source, seed=width), 0.037, (None, 7, 300)[width % 3], target)


@pytest.mark.parametrize("target", TARGETS)
def test_special_values(kernels: ctypes.CDLL, target: torch.dtype) -> None:
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


def test_halves_between_two_steps_go_to_the_even_one(kernels: ctypes.CDLL) -> None:
    check_tensor(kernels, torch.arange(-300, 300) / 4, 0.5, None, torch.int8)


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_unaligned_inputs(kernels: ctypes.CDLL, offset: int) -> None:
    for dtype in SOURCES:
        memory = sample(3 * 128 + offset, dtype=dtype)
        check_rows(kernels, memory[offset:].view(3, 128), torch.int8)
        check_tensor(kernels, memory[offset:], 0.02, 1, torch.uint8)


def test_more_rows_than_one_block_takes(kernels: ctypes.CDLL) -> None:
    check_rows(kernels, sample(100, 5), torch.uint8)
    check_tensor(kernels, sample(5, 3001), 0.02, None, torch.int8)
