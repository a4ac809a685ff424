"""The battery's cases of what works on rows of few: quantization, norms, products of up to 8 rows, pooling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import test_emulated_gemv as gemv
import test_emulated_pool_int8 as pool
import test_emulated_quantize_int8 as quantize
from harness import Kernels, Machine, output
from mutants_battery import INT8, MACHINES, Check, Part, Sparing, small
from torchaccel.ops import _epilogue
from torchaccel.ops.quantize_int8 import _dynamic_reference


def quantize_part() -> Part:
    checks: list[Check] = []

    def rows(x: Tensor, target: torch.dtype) -> None:
        checks.append(lambda kernels: quantize.check_rows(kernels, x, target))

    def tensor(x: Tensor, scale: float, zero_point: int | None, target: torch.dtype) -> None:
        checks.append(lambda kernels: quantize.check_tensor(kernels, x, scale, zero_point, target))

    for i, (source, widths) in enumerate(quantize.WIDTHS.items()):
        for j, width in enumerate(widths):
            target = INT8[(i + j) % 2]
            x = quantize.sample(11 if width < 2000 else 2, width, dtype=source, seed=width)
            rows(x, target)
            if width:
                tensor(x[:2].contiguous(), 0.037, (None, 7, 300)[width % 3], target)
    for zero_point in (-900, 900):  # what is clamped to 1024 steps shows
        tensor(quantize.sample(2, 64) * 1e4, 0.037, zero_point, torch.int8)
    checks.append(Sparing(quantize_all))
    for shape in ((9, 512), (2, 516), (2, 8192), (2, 8200), (3, 130)):
        x = quantize.sample(*shape)
        checks.append(Sparing(lambda kernels, machine, x=x: quantize_each(kernels, x, machine)))
    checks += [
        lambda kernels: quantize.test_special_values(kernels, torch.int8),
        lambda kernels: quantize.test_special_values(kernels, torch.uint8),
        quantize.test_halves_between_two_steps_go_to_the_even_one,
        lambda kernels: quantize.test_unaligned_inputs(kernels, 1),
        lambda kernels: quantize.test_unaligned_inputs(kernels, 2),
        quantize.test_more_rows_than_one_block_takes,
    ]
    return Part("quantize_int8", checks, "-O1")  # at -O0 what a call returns is stored past the hooks


def quantize_each(kernels: Kernels, x: Tensor, machine: Machine) -> None:
    rows, k = x.shape
    q, scale, zero_point = torch.empty(rows, k, dtype=torch.int8), torch.empty(rows), torch.empty(rows).int()
    outputs = map(output, (q, scale, zero_point))
    kernels.run("quantize_rows", b"f", b"s", x, *outputs, rows, k, machine=machine)


def quantize_all(kernels: Kernels, machine: Machine) -> None:
    x, q = quantize.sample(5, 512), torch.empty(5, 512, dtype=torch.int8)
    kernels.run("quantize_tensor", b"f", b"s", x, output(q), torch.ones(1), None, x.numel(), machine=machine)


def even(rows: int, k: int, dtype: torch.dtype, seed: int, offset: int = 0) -> Tensor:
    """Integers whose rows have an integer mean, so that all sums are exact; `offset` elements behind an address."""
    x = torch.randint(-6, 7, (rows, k), generator=torch.Generator().manual_seed(seed)).double()
    x -= (torch.arange(k) < (x.sum(1) % k)[:, None]).double()
    memory = torch.zeros(rows * k + offset, dtype=dtype)
    memory[offset:] = x.flatten().to(dtype)
    return memory[offset:].view(rows, k)


def normalized(x: Tensor, eps: float, centred: bool) -> Tensor:
    """As the kernel rounds it; numpy's square roots are correctly rounded, PyTorch's are not."""
    y = x.float().numpy()
    if centred:
        y = y - y.mean(1, keepdims=True)
    squares = (y.astype(np.float64) ** 2).sum(1, keepdims=True).astype(np.float32)
    factor = np.float32(1) / np.sqrt(squares / np.float32(x.shape[1]) + np.float32(eps))
    return torch.from_numpy(y * factor)


def norm_check(
    x: Tensor, terms: dict[str, Tensor | None], centred: bool, static: bool
) -> Callable[[Kernels, Machine], None]:
    rows, k = x.shape
    letter, target = (b"f", torch.int8) if x.dtype == torch.float32 else (b"h", torch.uint8)
    weight, bias, eps = terms["weight"], terms["bias"], 2.0**-10
    step = torch.tensor([0.03]) if static else None
    shift = terms["zero_point"] if static else None
    y = normalized(x, eps, centred)
    y = y if weight is None else y * weight.float()
    y = y if bias is None else y + bias.float()
    if step is not None:
        want = (_epilogue.saturate(y, step, 0 if shift is None else shift, target),)
    else:
        want = _dynamic_reference(y, target)

    def check(kernels: Kernels, machine: Machine) -> None:
        q, scale = torch.empty(rows, k, dtype=target), torch.empty(rows)
        zero_point = torch.empty(rows, dtype=torch.int32)
        given = (output(q), None, None) if static else (output(q), output(scale), output(zero_point))
        kernels.run(
            "norm", letter, x, weight, bias, eps, int(centred), step, shift, *given, rows, k, machine=machine
        )  # fmt: skip
        for got, expected in zip((q, scale, zero_point), want, strict=False):
            assert torch.equal(got, expected), f"{int((got != expected).sum())} of {expected.numel()} differ"

    return check


def norm() -> Part:
    checks: list[Check] = []
    shapes = [
        (11, 8),
        (9, 4),
        (3, 1024),
        (9, 1032),
        (2, 2048),
        (2, 8192),
        (2, 8200),
        (1, 1),
        (20, 37),
        (2, 1500),
        (2, 8201),
    ]
    for i, (rows, k) in enumerate(shapes):
        for j, dtype in enumerate((torch.float32, torch.float16)):
            for static in (False, True):
                terms: dict[str, Tensor | None] = {
                    "weight": None if (i + j) % 3 == 0 else torch.randn(k).to(dtype),
                    "bias": None if (i + j) % 4 == 0 else torch.randn(k).to(dtype),
                    "zero_point": None if i % 2 else torch.tensor([17], dtype=torch.int32),
                }
                x = even(rows, k, dtype, seed=k, offset=(i + j) % 3 == 2)
                run = norm_check(x, terms, (i + j + static) % 2 == 0, static)
                checks.append(lambda kernels, run=run, machine=MACHINES[(i + j) % 3]: run(kernels, machine))
                if not static:
                    checks.append(Sparing(run))
    return Part("mutants_norm", checks, "-O1")


def gemv_int8() -> Part:
    checks: list[Check] = []

    def case(m: int, n: int, k: int, **plan: Any) -> None:
        seed = len(checks)
        plan["machine"] = MACHINES[seed % 3]
        checks.append(lambda kernels: gemv.check_int8(kernels, m, n, k, torch.int8, seed, **plan))

    for i, k in enumerate((1, 16, 63, 64, 65, 1000, 1024, 1100, 2048)):
        for channels in (16, 32, 64):
            case(i % 8 + 1, (130, 17, 64, 31, 72)[i % 5], k, channels=channels)
    for i, (m, n, k) in enumerate(
        ((1, 33, 2100), (8, 64, 1030), (3, 17, 64), (5, 130, 500), (8, 128, 2080), (8, 132, 1030))
    ):
        for splits in (2, 3, 16):
            case(m, n, k, channels=16 << (i + splits) % 3, splits=splits)
    x, b = gemv.integers(4 * 128 + 3)[3:].view(4, 128), gemv.integers(20, 128)  # at an odd address
    want = (x.int() @ b.int().T).float()
    checks.append(lambda kernels: _equal(gemv.product(kernels, x, b, torch.float32, channels=32), want))
    for channels in (16, 32, 64):
        checks.append(
            Sparing(
                lambda kernels, machine, n=channels: gemv.check_int8(
                    kernels, 4, n, 128 + 16, torch.int8, 0, channels=n, machine=machine
                )
            )
        )
    return Part("mutants_gemv_int8", checks)


def _equal(got: Tensor, want: Tensor) -> None:
    assert torch.equal(got, want), f"{int((got != want).sum())} of {want.numel()} differ"


def gemv_float() -> Part:
    checks: list[Check] = []

    def case(x: Tensor, n: int, **plan: Any) -> None:
        b = gemv.integers(n, x.shape[1], seed=n)
        want = (x.double() @ b.double().T).float()
        plan["machine"] = MACHINES[len(checks) % 3]
        checks.append(lambda kernels: _equal(gemv.product(kernels, x, b, torch.float32, **plan), want))

    for dtype in (torch.float16, torch.float32):
        for i, k in enumerate((1, 16, 65, 1000, 1100)):
            for channels in (16, 32, 64):
                if dtype == torch.float16 or channels < 64:
                    case(small(i + 3, k, dtype=dtype, seed=k), (130, 17, 64, 31, 72)[i], channels=channels)
        for splits in (2, 5):
            case(small(3, 500, dtype=dtype, seed=5), 33, channels=32, splits=splits)
            case(small(8, 1104, dtype=dtype, seed=6), 64, channels=16, splits=splits)
    mixed = torch.randn(5, 48, generator=torch.Generator().manual_seed(0))
    for place in range(0, 48, 5):  # one weight a row: no sums, all of float32's bits
        b = torch.zeros(16, 48, dtype=torch.int8)
        b[torch.arange(16), (torch.arange(16) * 3 + place) % 48] = 64
        want = mixed @ b.float().T
        checks.append(lambda kernels, b=b, want=want: _equal(gemv.product(kernels, mixed, b, torch.float32), want))
    checks.append(gemv.test_float32_keeps_all_its_bits)
    infinite = torch.zeros(3, 16)
    infinite[0, 3], infinite[1, 4], infinite[2, 5] = float("inf"), -float("inf"), torch.finfo(torch.float32).max
    ones = torch.ones(20, 16, dtype=torch.int8)
    checks.append(
        lambda kernels: _equal(gemv.product(kernels, infinite, ones, torch.float32), infinite @ ones.float().T)
    )
    return Part("mutants_gemv_float", checks)


def pool_each(kernels: Kernels, channels: int, windows: tuple, machine: Machine) -> None:
    a = pool.images(1, channels, windows[-1], torch.int8)
    kernel, stride, padding = windows[:3]
    out = torch.float32 if len(windows) == 5 else torch.int8
    want = torch.nn.functional.avg_pool2d(a.float(), kernel, stride, padding, ceil_mode=windows[-2])
    got, geometry = pool.nhwc(tuple(want.shape), out), pool.geometry(a, want, kernel, stride, padding, (1, 1))
    if len(windows) == 5:
        scale = torch.ones(1)
        arguments = b"s", a, output(got), geometry, 0, 0, scale, None, None, None
        kernels.run("avg_pool_int8", *arguments, machine=machine)
    else:
        kernels.run("max_pool_int8", b"s", a, output(got), geometry, machine=machine)


def add_all(kernels: Kernels, machine: Machine) -> None:
    a, got, one = pool.integers(64, dtype=torch.int8), torch.empty(64), torch.ones(1)
    kernels.run("add_int8", a, 3, a, 3, output(got), 0, 64, one, None, one, None, 0, None, None, machine=machine)


def pools() -> Part:
    checks: list[Check] = []
    for i, windows in enumerate(pool.MAX_WINDOWS):
        for j, channels in enumerate((3, 20, 48)):
            a = pool.images(2, channels, windows[-1], INT8[(i + j) % 2], offset=(0, 0, 0, 4)[(i + j) % 4])
            checks.append(lambda kernels, a=a, w=windows, o=(i * j % 3 == 2) * 4: pool.check_max(kernels, a, w, o))
    for i, windows in enumerate(pool.AVG_WINDOWS):
        for j, channels in enumerate((3, 20, 48)):
            a = pool.images(2, channels, windows[-1], INT8[(i + j) % 2], offset=(0, 0, 0, 4)[(i + j) % 4])
            given = pool.TYPES[(i + j) % 5], j % 2 == 0, (None, 9, -77)[(i + j) % 3], (i * j % 3 == 2) * 4
            checks.append(lambda kernels, a=a, w=windows, g=given: pool.check_avg(kernels, a, w, *g))
    checks.append(lambda kernels: pool.test_pooling_at_any_address(kernels, 1))
    checks.append(lambda kernels: pool.test_pooling_at_any_address(kernels, 4))
    for n in (1, 15, 16, 17, 4097, 9001):
        checks.append(lambda kernels, n=n: pool.test_add(kernels, n))
    checks.append(lambda kernels: pool.test_add_at_any_address(kernels, 1))
    checks.append(lambda kernels: pool.test_add_at_any_address(kernels, 8))
    for size, windows in (
        (16, pool.MAX_WINDOWS[0]),
        (20, pool.MAX_WINDOWS[0]),
        (16, pool.AVG_WINDOWS[0]),
        (48, pool.AVG_WINDOWS[3]),
    ):
        checks.append(Sparing(lambda kernels, machine, c=size, w=windows: pool_each(kernels, c, w, machine)))
    checks.append(Sparing(add_all))
    many = pool.test_many_images_go_in_launches_that_32_bit_indices_hold
    checks += [
        lambda kernels: many(kernels, 1 << 20, 112, 64, 393),
        lambda kernels: many(kernels, 2**24 - 4, 1, 256, 2),
    ]
    return Part("pool_int8", checks, "-O1")  # as above, and locals are no accesses to count
