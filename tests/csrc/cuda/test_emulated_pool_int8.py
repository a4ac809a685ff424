"""The CUDA kernels of int8 pooling and addition, run on the CPU by csrc/cuda/emulate, against the references."""

from __future__ import annotations

import ctypes
import importlib

import pytest
import torch
from torch import Tensor

from harness import MACHINES, Kernels, compiled, output

# The package exports functions under the names of these modules.
MAX, AVG, ADD = (importlib.import_module(f"torchaccel.ops.int8_{name}") for name in ("max_pool2d", "avg_pool2d", "add"))
INT8 = (torch.int8, torch.uint8)
TYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.uint8]  # as csrc/cuda/epilogue.cuh counts them
LETTERS = {torch.int8: b"s", torch.uint8: b"u"}
ACTIVATIONS = ("none", "relu", "relu6", "gelu", "silu")
# kernel, stride, padding, dilation, ceil_mode and an input size; those of averages have no dilation.
MAX_WINDOWS = (
    ((3, 3), (2, 2), (1, 1), (1, 1), False, (9, 8)),
    ((2, 2), (2, 2), (0, 0), (1, 1), True, (5, 7)),
    ((3, 2), (1, 3), (1, 0), (2, 3), False, (7, 9)),
    ((3, 3), (3, 3), (1, 1), (1, 1), True, (4, 3)),
    ((2, 2), (1, 1), (1, 1), (3, 3), False, (2, 5)),  # one window lies in the padding alone
)
AVG_WINDOWS = (
    ((3, 3), (2, 2), (1, 1), True, (8, 9)),
    ((2, 3), (2, 1), (1, 1), False, (5, 6)),
    ((3, 3), (3, 3), (1, 1), True, (4, 4)),
    ((7, 7), (7, 7), (0, 0), False, (7, 7)),
    ((4, 5), (3, 2), (2, 1), True, (9, 8)),
    ((13, 11), (13, 11), (0, 0), False, (13, 11)),
    ((1, 16), (1, 16), (0, 0), False, (3, 33)),
)
CHANNELS = (1, 3, 4, 16, 20, 48, 132)


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return compiled("pool_int8")


def integers(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    info = torch.iinfo(dtype)
    g = torch.Generator().manual_seed(seed)
    return torch.randint(info.min, info.max + 1, shape, generator=g, dtype=torch.int32).to(dtype)


def images(n: int, c: int, size: tuple[int, int], dtype: torch.dtype, offset: int = 0) -> Tensor:
    """[N, C, H, W] in channels_last, `offset` bytes behind an aligned address."""
    memory = integers(n * size[0] * size[1] * c + offset, dtype=dtype, seed=c)
    return memory[offset:].view(n, *size, c).permute(0, 3, 1, 2)


def nhwc(shape: tuple[int, ...], dtype: torch.dtype, offset: int = 0) -> Tensor:
    n, c, h, w = shape
    return torch.empty(n * h * w * c + offset, dtype=dtype)[offset:].view(n, h, w, c).permute(0, 3, 1, 2)


def geometry(a: Tensor, want: Tensor, kernel, stride, padding, dilation) -> ctypes.Array:
    n, c, h, w = a.shape
    values = (n, h, w, c, *kernel, *stride, *padding, *dilation, *want.shape[2:])
    return (ctypes.c_int64 * 14)(*values)


def one(value: float | None, dtype: torch.dtype) -> Tensor | None:
    return None if value is None else torch.tensor([value], dtype=dtype)


def check_max(kernels: Kernels, a: Tensor, windows: tuple, offset: int = 0) -> None:
    *given, ceil_mode, _ = windows
    want = MAX.reference(a, *given, ceil_mode)
    for machine in MACHINES:
        got = nhwc(tuple(want.shape), a.dtype, offset)
        kernels.run("max_pool_int8", LETTERS[a.dtype], a, output(got), geometry(a, want, *given), machine=machine)
        assert torch.equal(got, want)


def check_avg(
    kernels: Kernels,
    a: Tensor,
    windows: tuple,
    out: torch.dtype,
    include_padding: bool,
    zero_point: int | None,
    offset: int = 0,
) -> None:
    kernel, stride, padding, ceil_mode, _ = windows
    scale, shift = one(0.037, torch.float32), one(zero_point, torch.int32)
    tail = (one(0.21, torch.float32), one(5, torch.int32)) if out in INT8 else (None, None)
    want = AVG.reference(a, scale, shift, kernel, stride, padding, ceil_mode, include_padding, out, *tail)
    for machine in MACHINES:
        got = nhwc(tuple(want.shape), out, offset)
        kernels.run(
            "avg_pool_int8", LETTERS[a.dtype], a, output(got), geometry(a, want, kernel, stride, padding, (1, 1)),
            int(include_padding), TYPES.index(out), scale, shift, *tail, machine=machine,
        )  # fmt: skip
        assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", INT8)
@pytest.mark.parametrize("windows", MAX_WINDOWS)
def test_max_pool(kernels: Kernels, windows: tuple, dtype: torch.dtype) -> None:
    for channels in CHANNELS:
        check_max(kernels, images(2, channels, windows[-1], dtype), windows)


@pytest.mark.parametrize("dtype", INT8)
@pytest.mark.parametrize("windows", AVG_WINDOWS)
def test_avg_pool(kernels: Kernels, windows: tuple, dtype: torch.dtype) -> None:
    for i, channels in enumerate(CHANNELS):
        for j, out in enumerate(TYPES):
            zero_point = (None, 0, 9, -77)[(i + j) % 4]
            check_avg(kernels, images(2, channels, windows[-1], dtype), windows, out, (i + j) % 2 == 0, zero_point)


@pytest.mark.parametrize("offset", [1, 2, 4, 8])
def test_pooling_at_any_address(kernels: Kernels, offset: int) -> None:
    for channels in (16, 20):
        for at_input, at_output in ((offset, 0), (0, offset), (offset, offset)):
            a = images(1, channels, (9, 8), torch.int8, at_input)
            check_max(kernels, a, MAX_WINDOWS[0], at_output)
            for windows in (AVG_WINDOWS[0], AVG_WINDOWS[4]):
                check_avg(kernels, a, windows, torch.uint8, True, 3, at_output)
                check_avg(kernels, a, windows, torch.float32, True, 3, at_output)


def check_add(
    kernels: Kernels,
    a: Tensor,
    b: Tensor,
    out: torch.dtype,
    activation: str,
    shifts: tuple[int | None, int | None],
    offset: int = 0,
) -> None:
    scales = one(0.031, torch.float32), one(0.017, torch.float32)
    first, second = (one(shift, torch.int32) for shift in shifts)
    tail = (one(0.04, torch.float32), one(-3, torch.int32)) if out in INT8 else (None, None)
    want = ADD.reference(a, b, scales[0], first, scales[1], second, activation, out, *tail)
    for machine in MACHINES:
        got = torch.empty(a.numel() + offset, dtype=out)[offset:]
        kernels.run(
            "add_int8", a, TYPES.index(a.dtype), b, TYPES.index(b.dtype), output(got), TYPES.index(out), a.numel(),
            scales[0], first, scales[1], second, ACTIVATIONS.index(activation), *tail, machine=machine,
        )  # fmt: skip
        if activation not in ("gelu", "silu"):
            assert torch.equal(got, want)
        else:
            torch.testing.assert_close(got.float(), want.float(), rtol=1e-2, atol=1.0 if out in INT8 else 1e-5)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 4095, 4096, 4097, 9001])
def test_add(kernels: Kernels, n: int) -> None:
    for i, out in enumerate(TYPES):
        for j, (first, second) in enumerate([(x, y) for x in INT8 for y in INT8]):
            a, b = integers(n, dtype=first, seed=n), integers(n, dtype=second, seed=n + 1)
            check_add(kernels, a, b, out, ACTIVATIONS[(i + j) % 5], ((None, 7)[i % 2], (-9, None)[j % 2]))


@pytest.mark.parametrize("offset", [1, 2, 8])
def test_add_at_any_address(kernels: Kernels, offset: int) -> None:
    a, b = integers(600, dtype=torch.int8), integers(600, dtype=torch.uint8, seed=1)
    for first, second, at in ((offset, 0, 0), (0, offset, 0), (0, 0, offset), (offset, offset, offset)):
        for out in (torch.uint8, torch.float32):
            check_add(kernels, a[first : first + 500], b[second : second + 500], out, "relu", (1, 2), at)


@pytest.mark.parametrize(
    "images, size, channels, launches",
    [(1 << 20, 112, 64, 393), (2 * (2**23 - 2), 1, 256, 2)],  # the second fills its launches
)
def test_many_images_go_in_launches_that_32_bit_indices_hold(
    kernels: Kernels, images: int, size: int, channels: int, launches: int
) -> None:
    """No tensor of that size fits here: the plan alone."""
    plan = (ctypes.c_int64 * 3)()
    kernels.run("pool_plan", images, size, size, channels, plan)
    assert plan[0] == launches and plan[1] < 2**31 and plan[2] == images
