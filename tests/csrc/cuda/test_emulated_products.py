"""The CUDA products and convolutions, run by csrc/cuda/emulate: each tiling at its edges, to the reference's bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import MACHINES, Kernels, Machine, compiled
from product_case import Problem, run, tilings

INT8 = (torch.int8, torch.uint8)


def integers(*shape: int, dtype: torch.dtype = torch.int8, seed: int = 0) -> Tensor:
    info = torch.iinfo(dtype)
    low = -127 if dtype == torch.int8 else info.min
    return torch.randint(low, info.max + 1, shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def floats(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pruned(weight: Tensor, two_four: bool, tiles: bool) -> Tensor:
    """`weight` [O, kh, kw, C] with two of four left along C, and with half of its tiles gone."""
    generator = torch.Generator().manual_seed(weight.numel())
    flat = weight.flatten(1).clone()
    if tiles:
        depth = (128 if two_four else 64) // weight.element_size()
        gone = torch.rand(-(-flat.shape[0] // 64), -(-flat.shape[1] // depth), generator=generator) < 0.5
        gone[0] = True  # a band that is all zeros
        whole = gone.repeat_interleave(64, 0).repeat_interleave(depth, 1)
        flat[whole[: flat.shape[0], : flat.shape[1]]] = 0
    if two_four:
        groups = flat.view(flat.shape[0], -1, 4)
        drop = torch.rand(groups.shape, generator=generator).argsort(2)[..., :2]
        groups.scatter_(2, drop, torch.zeros_like(groups[..., :2]))
        groups[::3, ::2, :] = 0  # groups with less than two
    return flat.view(weight.shape)


def check(kernels: Kernels, problem: Problem, machine: Machine) -> None:
    got, want = run(kernels, problem, machine), problem.want()
    differ = int((got != want).sum())
    assert differ == 0, (
        f"{differ} of {want.numel()} differ: tiling {problem.tiling}, {problem.blocks} blocks, {problem.whole} whole"
    )
    assert kernels.bank_conflicts == 0


def check_all(kernels: Kernels, problem: Problem) -> None:
    """Each tiling, each on another machine."""
    for tiling in range(tilings(kernels, problem)):
        check(kernels, replace(problem, tiling=tiling), MACHINES[(tiling + problem.rows) % len(MACHINES)])


def product(rows: int, channels: int, k: int, dtype: torch.dtype = torch.int8, **settings: Any) -> Problem:
    x, weight = integers(1, rows, 1, k, dtype=dtype, seed=k), integers(channels, 1, 1, k, seed=rows)
    return Problem(x, weight, matrix=True, **settings)


def convolution(
    images: int, size: int, c: int, o: int, kernel: int, dtype: torch.dtype = torch.uint8, **settings: Any
) -> Problem:
    x = integers(images, size, size + 1, c, dtype=dtype, seed=c)
    return Problem(x, integers(o, kernel, kernel, c, seed=o), **settings)


# Rows, channels and K at the edges of a tile and of a group of tiles, one, primes, and no multiples of 16 or 4 bytes.
SHAPES = [
    (1, 1, 16), (17, 64, 64), (131, 70, 208), (257, 129, 128), (64, 200, 1040), (7, 13, 20), (33, 67, 131),
    (129, 65, 1), (20, 512, 16), (40, 1160, 16),
]  # fmt: skip


@pytest.mark.parametrize("dtype", INT8)
@pytest.mark.parametrize("rows, channels, k", SHAPES)
def test_matrix(rows: int, channels: int, k: int, dtype: torch.dtype) -> None:
    check_all(compiled("products_matrix"), product(rows, channels, k, dtype))


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("blocks", [2, 3, 7, 13])
def test_shared_tiles(blocks: int, machine: Machine) -> None:
    kernels = compiled("products_matrix")
    for shape in (
        (33, 130, 448),
        (5, 7, 80),
        (150, 65, 208),
    ):  # 7, 2 and 4 steps: some blocks have none, some many tiles
        for tiling, whole in ((2, 0), (5, 1), (8, 2), (10, 0)):
            check(kernels, product(*shape, tiling=tiling, blocks=blocks, whole=whole), machine)


# images, size, C, O, kernel and the geometry: C of 16-byte, 4-byte and odd pixels, taps that straddle chunks.
CONVOLUTIONS: list[tuple[tuple[int, int, int, int, int], dict[str, Any]]] = [
    ((2, 5, 16, 65, 3), {"padding": (1, 1)}),
    ((1, 7, 48, 32, 3), {"stride": (2, 2), "padding": (1, 1)}),
    ((3, 6, 64, 70, 1), {"stride": (2, 1)}),
    ((1, 9, 32, 40, 3), {"dilation": (2, 3), "padding": (2, 3)}),
    ((2, 4, 80, 130, 2), {"padding": (0, 1), "stride": (1, 3)}),
    ((1, 6, 20, 17, 3), {"padding": (2, 2)}),
    ((2, 8, 3, 24, 5), {"stride": (2, 2), "padding": (2, 2)}),
    ((1, 5, 1, 9, 1), {}),  # a tile of K holds more taps than a register has bits
    ((1, 4, 16, 9, 15), {"padding": (7, 8)}),
]


@pytest.mark.parametrize("dtype", INT8)
@pytest.mark.parametrize("sizes, geometry", CONVOLUTIONS)
def test_convolution(sizes: tuple[int, int, int, int, int], geometry: dict[str, Any], dtype: torch.dtype) -> None:
    for zero_point in (None, [7], [3, -5, 90][: sizes[0]]):
        problem = convolution(*sizes, dtype, **geometry)
        if zero_point is not None:
            problem.zero_point = (
                torch.tensor(zero_point, dtype=torch.int32).abs_()
                if dtype == torch.uint8
                else torch.tensor(zero_point, dtype=torch.int32)
            )
        check_all(compiled("products_image"), problem)


@pytest.mark.parametrize("dtype", INT8)
def test_two_four(dtype: torch.dtype) -> None:
    kernels = compiled("products_two_four")
    for shape in ((17, 64, 128), (70, 130, 400), (260, 65, 16)):
        problem = product(*shape, dtype, two_four=True)
        problem.weight = pruned(problem.weight, True, False)
        check_all(kernels, problem)
    for sizes, geometry in CONVOLUTIONS[:5]:
        problem = convolution(*sizes, dtype, zero_point=torch.tensor([5], dtype=torch.int32), two_four=True, **geometry)
        problem.weight = pruned(problem.weight, True, False)
        check_all(kernels, problem)
    check(kernels, replace(problem, tiling=2, blocks=4, whole=0), MACHINES[2])


@pytest.mark.parametrize("dtype", INT8)
@pytest.mark.parametrize("two_four", [False, True])
def test_skipped_tiles(two_four: bool, dtype: torch.dtype) -> None:
    for sizes, geometry in CONVOLUTIONS[:5]:
        problem = convolution(*sizes, dtype, two_four=two_four, skip=True, **geometry)
        problem.weight = pruned(problem.weight, two_four, True)
        check_all(compiled("products_skip"), problem)
        check(compiled("products_skip"), replace(problem, tiling=1, blocks=3, whole=0), MACHINES[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("two_four, skip", [(False, False), (True, False), (False, True), (True, True)])
def test_halves(two_four: bool, skip: bool, dtype: torch.dtype) -> None:
    kernels = compiled("products_half")
    for (images, size, c, o, kernel), geometry in CONVOLUTIONS[:5]:
        x = floats(images, size, size + 1, c // 2, seed=c).to(dtype)
        weight = floats(o, kernel, kernel, c // 2, seed=o).to(dtype)
        if two_four or skip:
            weight = pruned(weight, two_four, skip)
        problem = Problem(x, weight, out_dtype=dtype, two_four=two_four, skip=skip, activation="relu", **geometry)
        problem.bias = floats(o).to(dtype)
        problem.residual = floats(images, *problem.out_size, o, seed=3).to(dtype)
        conv = torch.nn.functional.conv2d
        exact, bound = (
            conv(f(x).permute(0, 3, 1, 2), f(weight).permute(0, 3, 1, 2), f(problem.bias), problem.stride,
                 problem.padding, problem.dilation).permute(0, 2, 3, 1) + f(problem.residual)
            for f in (Tensor.double, lambda t: t.double().abs())
        )  # fmt: skip
        exact, bound = (t.reshape(problem.rows, o) for t in (exact.relu(), bound))
        # Rounding to the type, and float32 sums of K products.
        limit = (
            torch.finfo(dtype).eps * exact.abs() + 4 * torch.finfo(torch.float32).eps * weight[0].numel() ** 0.5 * bound
        )
        for tiling in range(tilings(kernels, problem)):
            for whole in (0, 99):
                got = run(kernels, replace(problem, tiling=tiling, whole=whole), MACHINES[(tiling + whole) % 3])
                assert ((got.double() - exact).abs() <= limit).all() and kernels.bank_conflicts == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows, channels, k", [(9, 64, 64), (17, 65, 200), (70, 130, 96), (33, 7, 51)])
def test_weight_only(rows: int, channels: int, k: int, dtype: torch.dtype) -> None:
    kernels = compiled("products_weight_only")
    x, weight = floats(1, rows, 1, k, seed=k).to(dtype), integers(channels, 1, 1, k, seed=rows)
    problem = Problem(x, weight, matrix=True, scale_b=floats(channels).abs(), bias=floats(channels), out_dtype=dtype)
    a, b = x.double().view(rows, k), weight.double().view(channels, k)
    exact = a @ b.t() * problem.scale_b + problem.bias
    bound = a.abs() @ b.abs().t() * problem.scale_b + problem.bias.abs()
    limit = torch.finfo(dtype).eps * exact.abs() + 4 * torch.finfo(torch.float32).eps * k**0.5 * bound
    for tiling in range(tilings(kernels, problem)):
        for whole in (0, 99):
            got = run(kernels, replace(problem, tiling=tiling, whole=whole), MACHINES[(tiling + whole) % 3])
            assert ((got.double() - exact).abs() <= limit).all()


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.uint8])
@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "gelu", "silu"])
def test_epilogue(activation: str, out_dtype: torch.dtype) -> None:
    kernels = compiled("products_matrix")
    for channels, residual in (
        (72, None),
        (70, torch.float32),
        (96, torch.int8),
        (40, torch.uint8),
        (64, torch.bfloat16),
    ):
        problem = product(21, channels, 64, torch.uint8, activation=activation, out_dtype=out_dtype, tiling=7)
        problem.scale_a, problem.scale_b = floats(1).abs() * 1e-3, floats(channels, seed=1).abs()
        problem.zero_point = torch.tensor([31], dtype=torch.int32)
        problem.bias = floats(channels, seed=2)
        if residual in INT8:
            problem.residual = integers(1, 21, 1, channels, dtype=residual)
            problem.scale_residual, problem.zero_point_residual = floats(1).abs(), torch.tensor([4], dtype=torch.int32)
        elif residual is not None:
            problem.residual = floats(1, 21, 1, channels).to(residual)
        if out_dtype in INT8:
            problem.scale_out, problem.zero_point_out = (
                torch.tensor([0.05]),
                torch.tensor([-3 if out_dtype == torch.int8 else 11], dtype=torch.int32),
            )
        got, want = run(kernels, problem, MACHINES[channels % 3]), problem.want()
        if activation in ("gelu", "silu"):  # erf and exp differ in their last bits
            step = 1 if out_dtype in INT8 else torch.finfo(out_dtype).eps * 8
            torch.testing.assert_close(got.float(), want.float(), rtol=0 if out_dtype in INT8 else step, atol=step)
        else:
            assert torch.equal(got, want)


def test_scales_of_each_row() -> None:
    problem = product(37, 24, 64, torch.int8, tiling=3)
    problem.scale_a, problem.scale_b = floats(37).abs(), floats(24, seed=1).abs()
    problem.zero_point = torch.arange(37, dtype=torch.int32) - 18
    problem.x = problem.x.view(37, 1, 1, 64)  # rows as images, as the reference wants them
    check(compiled("products_matrix"), problem, MACHINES[0])


def test_nan_and_infinities_reach_the_output() -> None:
    problem = product(8, 16, 64, torch.int8, tiling=4, activation="relu")
    problem.scale_b = torch.tensor([float("nan"), float("inf"), -float("inf")] + [1.0] * 13)
    assert torch.equal(run(compiled("products_matrix"), problem, MACHINES[0]).isnan(), problem.want().isnan())


def test_infinities_stay_in_their_windows() -> None:
    """The weights are zero past K; the activations there must be too, since zero times infinity is none."""
    x, weight = torch.ones(1, 6, 7, 24, dtype=torch.float16), torch.ones(5, 3, 3, 24, dtype=torch.float16)
    x[0, 3, 4] = float("inf")
    problem = Problem(x, weight, padding=(1, 1), out_dtype=x.dtype, tiling=0)
    want = torch.nn.functional.conv2d(*(t.float().permute(0, 3, 1, 2) for t in (x, weight)), padding=1)
    got = run(compiled("products_half"), problem, MACHINES[0])
    assert torch.equal(got, want.permute(0, 2, 3, 1).reshape(problem.rows, -1).half())


def test_the_library_chooses_for_every_number_of_rows() -> None:
    kernels = compiled("products_matrix")
    for rows in (1, 2, 9, 16, 31, 64, 65, 100):
        check(kernels, product(rows, 129, 512), MACHINES[rows % 3])
