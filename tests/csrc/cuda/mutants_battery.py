"""What a mutant must live through: small cases at the edges of the kernels, each with its result computed beforehand.

A part is one shim with its cases; it is compiled for each mutant, so it holds few kernels and small ones.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import harness
import product_case
from harness import Kernels, Machine
from product_case import ACTIVATIONS, Problem
from test_emulated_products import convolution, floats, integers, product, pruned

Check = Callable[[Kernels], None]
INT8 = (torch.int8, torch.uint8)
LARGEST = 128 * 64  # of mutants_tilings.h and mutants_warpgroups.cpp
MACHINES = tuple(replace(machine, accesses=1 << 24) for machine in harness.MACHINES)  # what is endless ends soon


@dataclass(frozen=True)
class Part:
    shim: str
    checks: list[Check]
    level: str = "-O0"  # compiles in half the time of -O1

    def compiled(self, csrc: Path) -> Kernels:
        harness.KERNEL = [self.level if flag.startswith("-O") else flag for flag in harness.KERNEL]
        return harness.compiled(self.shim, csrc)

    def check(self, kernels: Kernels) -> None:
        for check in self.checks:
            check(kernels)


def small(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Integers of a float type, so small that sums are exact."""
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def equal(problem: Problem, machine: Machine = MACHINES[0], want: Tensor | None = None, tolerance: float = 0) -> Check:
    """The kernel's output is `want`, or what the reference makes of the problem."""
    problem = replace(problem, tile=LARGEST)
    expected = problem.want() if want is None else want

    def check(kernels: Kernels) -> None:
        got = product_case.run(kernels, problem, machine)
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
        assert kernels.bank_conflicts == 0, f"{kernels.bank_conflicts} bank conflicts"

    return check


class Sparing:
    """A run that must take no more accesses to memory than at first, when the kernel was not changed yet.

    So die mutants that go a slower way to the same result: one that reads twice, or bytes where vectors would do.
    """

    def __init__(self, run: Callable[[Kernels, Machine], Any]) -> None:
        self.run, self.limit = run, 0

    def __call__(self, kernels: Kernels) -> None:
        if self.limit == 0:
            low, high = 0, 1 << 24
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if self.lives(kernels, middle) else (middle, high)
            self.limit = high
        try:
            self.run(kernels, Machine(accesses=self.limit))
        except AssertionError as error:
            assert "endless" not in str(error), "takes more accesses"
            raise

    def lives(self, kernels: Kernels, limit: int) -> bool:
        try:
            self.run(kernels, Machine(accesses=limit))
        except AssertionError:
            return False
        return True


def everywhere(problem: Problem, tilings: tuple[int, ...] = (0, 1), **settings: Any) -> list[Check]:
    """On each machine, in each of the tilings."""
    return [equal(replace(problem, tiling=tiling), machine, **settings) for tiling in tilings for machine in MACHINES]


def matrix() -> Part:
    full = product(21, 200, 336)
    scaled(full, 5)
    each_row = product(37, 24, 64)
    each_row.scale_a, each_row.scale_b = floats(37).abs(), floats(24, seed=1).abs()
    each_row.zero_point = torch.arange(37, dtype=torch.int32) - 18
    each_row.x = each_row.x.view(37, 1, 1, 64)
    each_image = replace(each_row, x=integers(18, 1, 2, 64), tiling=0)
    each_image.scale_a, each_image.zero_point = (each_row.scale_a[:18], each_row.zero_point[:18])
    checks = [
        *everywhere(full, (0, 1, 2)),
        *everywhere(product(50, 130, 80, blocks=1)),
        *everywhere(each_row, (0,)),
        equal(each_image),
        *everywhere(product(1, 1, 16)),
        equal(product(40, 600, 16, tiling=0, whole=13)),  # more bands than go in a group
        equal(product(20, 512, 16, tiling=0)),  # as many
        *(
            equal(product(*shape, tiling=tiling, blocks=blocks, whole=whole), MACHINES[blocks % 3])
            for shape in ((33, 134, 448), (5, 7, 80), (50, 65, 208))  # 7, 2 and 4 steps
            for tiling in (0, 1)
            for blocks, whole in ((2, 0), (3, 1), (7, 2), (13, 0))
        ),
        *epilogues(),
    ]
    return Part("mutants_matrix", checks)


def scaled(problem: Problem, zero_point: int) -> None:
    """Everything that precedes the activation, but a residual."""
    channels = problem.weight.shape[0]
    problem.scale_a, problem.scale_b = floats(1).abs() * 1e-3, floats(channels, seed=1).abs()
    problem.zero_point = torch.tensor([zero_point], dtype=torch.int32)
    problem.bias = floats(channels, seed=2)


def quantized(problem: Problem, out_dtype: torch.dtype, zero_point: int | None) -> None:
    problem.out_dtype = out_dtype
    if out_dtype in INT8:
        problem.scale_out = torch.tensor([0.05])
        problem.zero_point_out = None if zero_point is None else torch.tensor([zero_point], dtype=torch.int32)


def epilogues() -> list[Check]:
    """Each type of bias, residual and output, each activation; whole vectors and not."""
    floating = (torch.float32, torch.float16, torch.bfloat16)
    residuals = (None, torch.float32, torch.int8, torch.uint8, torch.bfloat16, torch.float16, torch.int8)
    checks = []
    for i, channels in enumerate((72, 70, 96, 40, 64, 33, 51)):
        for j, out_dtype in enumerate((*floating, *INT8)):
            activation = ACTIVATIONS[(i + j) % 5]
            problem = product(10, channels, 64, activation=activation, tiling=(i + j) % 2)
            scaled(problem, (i - 3) * 11)
            problem.bias = None if i == 3 else problem.bias.to(floating[i % 3])
            if residuals[i] in INT8:
                problem.residual = integers(1, 10, 1, channels, dtype=residuals[i])
                problem.scale_residual = floats(1).abs() * 0.1
                problem.zero_point_residual = None if i == 6 else torch.tensor([40], dtype=torch.int32)
            elif residuals[i] is not None:
                problem.residual = (floats(1, 10, 1, channels) * 4).to(residuals[i])
            quantized(problem, out_dtype, (None, -3, 11)[(i + j) % 3])
            smooth = activation in ("gelu", "silu")  # erf and exp differ in their last bits
            step = 1 if out_dtype in INT8 else torch.finfo(out_dtype).eps * 8
            checks.append(equal(problem, MACHINES[(i + j) % 3], tolerance=step if smooth else 0))
    for problem in (product(16, 128, 64, tiling=1), product(16, 64, 64, tiling=0, residual=floats(1, 16, 1, 64))):
        problem.scale_b = torch.ones(problem.weight.shape[0])
        checks.append(Sparing(lambda kernels, machine, p=problem: product_case.run(kernels, p, machine)))
    special = product(8, 16, 64, tiling=0, activation="relu")
    special.scale_b = torch.tensor([float("nan"), float("inf"), -float("inf")] + [1.0] * 13)
    large = product(8, 16, 64, tiling=0)  # saturates, and beyond what is exact
    quantized(large, torch.int8, 100)
    return [*checks, equal(special), equal(large)]


def image() -> Part:
    checks = []
    for sizes, geometry in (
        ((2, 5, 16, 65, 3), {"padding": (1, 1)}),
        ((1, 7, 48, 32, 3), {"stride": (2, 2), "padding": (1, 1)}),
        ((1, 9, 32, 40, 3), {"dilation": (2, 3), "padding": (2, 3)}),
        ((2, 4, 80, 130, 2), {"padding": (0, 1), "stride": (1, 3)}),
    ):
        for i, zero_point in enumerate((None, [7], [3, 200][-sizes[0] :])):
            problem = convolution(*sizes, torch.uint8, **geometry)
            if zero_point is not None:
                problem.zero_point = torch.tensor(zero_point, dtype=torch.int32)
            checks.append(equal(replace(problem, tiling=0, whole=(99, 99, 1)[i]), MACHINES[i]))
        skipped = convolution(*sizes, torch.uint8, skip=True, tiling=0, **geometry)
        skipped.weight = pruned(skipped.weight, False, True)
        checks += [equal(replace(skipped, whole=whole), MACHINES[whole % 3]) for whole in (0, 2, 99)]
    return Part("mutants_image", checks)


def pieces() -> Part:
    checks = []
    for shape in ((7, 13, 20), (33, 67, 131), (17, 65, 1), (5, 9, 132)):
        checks += everywhere(product(*shape), (0,))
    for sizes, geometry in (
        ((1, 6, 20, 17, 3), {"padding": (2, 2)}),
        ((2, 6, 3, 24, 5), {"stride": (2, 2), "padding": (2, 2)}),
        ((1, 5, 12, 9, 2), {"dilation": (1, 2), "padding": (1, 0)}),
        ((1, 5, 1, 9, 1), {}),  # a tile of K holds more taps than a register has bits
    ):
        problem = convolution(*sizes, torch.uint8, zero_point=torch.tensor([9], dtype=torch.int32), **geometry)
        checks += everywhere(problem, (0,))
    return Part("mutants_pieces", checks)


def two_four() -> Part:
    checks = []
    for shape in ((17, 64, 128), (50, 130, 400), (7, 65, 16)):
        problem = product(*shape, two_four=True)
        problem.weight = pruned(problem.weight, True, False)
        checks += everywhere(problem)
    for i, skip in enumerate((False, True)):
        x, weight = small(2, 5, 6, 24, dtype=torch.float16, seed=i), small(72, 3, 3, 24, dtype=torch.float16, seed=2)
        problem = Problem(x, pruned(weight, True, skip), two_four=True, skip=skip, padding=(1, 1), out_dtype=x.dtype)
        checks += everywhere(problem, (0,), want=exact(problem))
    return Part("mutants_two_four", checks)


def halves() -> Part:
    checks = []
    x, weight = small(1, 6, 5, 40, dtype=torch.bfloat16, seed=0), small(70, 2, 2, 40, dtype=torch.bfloat16, seed=1)
    problem = Problem(x, weight, padding=(1, 0), stride=(2, 1))
    checks += everywhere(problem, (0,), want=exact(problem))
    checks.append(equal(replace(problem, tiling=0, whole=1), MACHINES[1], want=exact(problem)))
    x, weight = small(1, 6, 7, 24, dtype=torch.bfloat16, seed=0), torch.ones(5, 3, 3, 24, dtype=torch.bfloat16)
    x[0, 3, 4] = float("inf")  # what lies past K must not be multiplied by the weights' zeros
    problem = Problem(x, weight, padding=(1, 1), tiling=0)
    checks.append(equal(problem, want=exact(problem)))
    for rows, channels, k in ((9, 64, 64), (17, 65, 200), (50, 130, 96)):
        problem = Problem(
            small(1, rows, 1, k, dtype=torch.bfloat16, seed=k), integers(channels, 1, 1, k, seed=rows), matrix=True
        )
        checks += everywhere(problem, want=exact(problem))
    problem = Problem(small(1, 19, 1, 51, dtype=torch.bfloat16, seed=5), integers(7, 1, 1, 51), matrix=True)
    checks += everywhere(problem, (0,), want=exact(problem))
    return Part("mutants_halves", checks)


def warpgroups() -> Part:
    checks = []
    for shape in ((21, 200, 336), (7, 65, 80), (70, 130, 512)):
        checks += everywhere(product(*shape))
    for blocks, whole in ((2, 0), (3, 1), (7, 2)):
        checks.append(equal(product(70, 134, 448, tiling=blocks % 2, blocks=blocks, whole=whole), MACHINES[blocks % 3]))
    checks.append(Sparing(lambda kernels, machine: product_case.run(kernels, product(64, 64, 256, tiling=1), machine)))
    problem = product(50, 70, 400, two_four=True)
    problem.weight = pruned(problem.weight, True, False)
    checks += everywhere(problem, (0,))
    x, weight = small(2, 5, 6, 24, dtype=torch.float16, seed=1), small(72, 3, 3, 24, dtype=torch.float16, seed=2)
    problem = Problem(x, pruned(weight, True, True), two_four=True, skip=True, padding=(1, 1), out_dtype=x.dtype)
    checks += everywhere(problem, (0,), want=exact(problem))
    return Part("mutants_warpgroups", checks)


def chosen() -> Part:
    """Products as the library would make them: some in two launches, one in a tiling smaller than the best.

    With the bytes of workspace that they take, and the blocks of their last launch: a few make a product slow.
    """

    def case(rows: int, channels: int, k: int, multiprocessors: int, room: int, *want_out: int) -> Check:
        problem = product(rows, channels, k, multiprocessors=multiprocessors)
        want = problem.want()

        def check(kernels: Kernels) -> None:
            got = torch.empty(rows, channels)
            given, buffers = product_case.fill(problem, got)
            del buffers["partial"]
            out = (ctypes.c_int64 * 2)()
            arguments = ctypes.pointer(given), room, out
            kernels.run("choose_and_run", *arguments, machine=MACHINES[0], buffers=buffers)
            assert torch.equal(got, want)
            assert tuple(out) == want_out, f"takes {out[0]} bytes, and {out[1]} blocks in the end"

        return check

    def refused(kernels: Kernels) -> None:
        given, _ = product_case.fill(product(4, 4, 16), torch.empty(4, 4))
        kernels.run("choose_and_run", ctypes.pointer(given), 1 << 10, (ctypes.c_int64 * 2)())
        assert kernels.launches == 0

    room = 227 << 10
    checks = [
        case(20, 64, 128, 3, room, 0, 2),
        case(16, 64, 8192, 3, room, 2 * 3 * 16 * 64 * 4, 1),
        case(16, 64, 8192, 2, room, 2 * 2 * 128 * 48 * 4, 6),
        case(40, 128, 8192, 2, room, 0, 1),
        case(40, 128, 4096, 3, 16 << 10, 0, 6),
        refused,
    ]
    return Part("mutants_chosen", checks)


def exact(p: Problem) -> Tensor:
    """[rows, O], of integers in float types."""
    x, weight = (t.double().permute(0, 3, 1, 2) for t in (p.x, p.weight))
    y = torch.nn.functional.conv2d(x, weight, None, p.stride, p.padding, p.dilation)
    return y.permute(0, 2, 3, 1).reshape(p.rows, -1).to(p.out_dtype)
