"""The CUDA kernels of norm_quantize_int8, run by csrc/cuda/emulate: within one step of the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness import MACHINES, Kernels, compiled, output
from torchaccel.ops.norm_quantize import _rows_reference, _static_reference

SOURCES = {torch.float32: b"f", torch.float16: b"h", torch.bfloat16: b"b"}
TARGETS = {torch.int8: b"s", torch.uint8: b"u"}
# Around each limit of the kernels: packs of 4 and 8, a warp's and a block's registers, and what no longer fits.
WIDTHS = {
    torch.float32: (1, 3, 4, 31, 128, 1024, 1025, 1028, 8192, 8193, 8196),
    torch.float16: (1, 8, 12, 127, 1024, 1032, 8191, 8200),
    torch.bfloat16: (9, 255, 1024, 1033, 8192, 8199),
}


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return compiled("norm_quantize")


def sample(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3 + 0.5).to(dtype)


def check(
    kernels: Kernels,
    x: Tensor,  # [rows, K]
    weight: Tensor | None,
    bias: Tensor | None,
    centred: bool,
    target: torch.dtype,
    eps: float = 1e-5,
    scale: float | None = None,
    zero_point: int | None = None,
) -> None:
    rows, k = x.shape
    types = SOURCES[x.dtype], TARGETS[target]
    for machine in MACHINES:
        q, scales = torch.empty(rows, k, dtype=target), torch.empty(rows)
        zero_points = torch.empty(rows, dtype=torch.int32)
        if scale is None:
            outputs = [output(each) for each in (q, scales, zero_points)]
            kernels.run(
                "norm_quantize", *types, x, weight, bias, eps, int(centred), None, None, *outputs, rows, k,
                machine=machine,
            )  # fmt: skip
            want, want_scales, want_points = _rows_reference(x, weight, bias, eps, centred, target)
            torch.testing.assert_close(scales, want_scales, rtol=1e-5, atol=0, equal_nan=True)
            assert (zero_points - want_points).abs().max() <= 1
        else:
            step = torch.tensor([scale])
            shift = None if zero_point is None else torch.tensor([zero_point], dtype=torch.int32)
            kernels.run(
                "norm_quantize", *types, x, weight, bias, eps, int(centred), step, shift, output(q), None, None, rows,
                k, machine=machine,
            )  # fmt: skip
            want = _static_reference(x, weight, bias, eps, centred, step, shift, target)
        apart = (q.int() - want.int()).abs()
        assert apart.max() <= 1 and (apart > 0).sum() <= 1 + apart.numel() // 100


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source, k", [(source, k) for source, widths in WIDTHS.items() for k in widths])
def test_widths(kernels: Kernels, source: torch.dtype, k: int, target: torch.dtype) -> None:
    x = sample(11 if k < 1000 else 2, k, dtype=source, seed=k)
    weight, bias = sample(k, dtype=source, seed=1), sample(k, dtype=source, seed=2)
    for i, centred in enumerate((True, False)):
        terms = ((weight, bias), (weight, None), (None, bias), (None, None))[(k + 2 * i) % 4]
        check(kernels, x, *terms, centred, target)
        check(kernels, x, *terms, centred, target, scale=0.037, zero_point=(None, 7)[k % 2])


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_any_address(kernels: Kernels, offset: int) -> None:
    for dtype in SOURCES:
        at = [sample(384, dtype=dtype, seed=seed) for seed in range(3)]
        off = [sample(384 + offset, dtype=dtype, seed=seed)[offset:] for seed in range(3)]
        for i in range(3):  # x, weight or bias
            x, weight, bias = (off[j] if j == i else at[j] for j in range(3))
            check(kernels, x.view(3, 128), weight[:128], bias[:128], True, torch.int8)


def test_an_output_at_any_address(kernels: Kernels) -> None:
    x, step = sample(3, 128), torch.tensor([0.05])
    want = _static_reference(x, None, None, 1e-5, True, step, None, torch.int8)
    for machine in MACHINES:
        q = torch.empty(385, dtype=torch.int8)[1:].view(3, 128)
        given = x, None, None, 1e-5, 1, step, None, output(q), None, None, 3, 128
        kernels.run("norm_quantize", b"f", b"s", *given, machine=machine)
        assert (q.int() - want.int()).abs().max() <= 1


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("k", [12, 130, 1030])
def test_special_values(kernels: Kernels, k: int, centred: bool) -> None:
    values = [float("nan"), float("inf"), -float("inf"), 1e30, 1e-45, -0.0]
    x = sample(len(values) + 3, k)
    x[torch.arange(len(values)), torch.arange(len(values)) * 7919 % k] = torch.tensor(values)
    x[-3], x[-2], x[-1] = 0.0, 5.0, 1e-30
    for target in TARGETS:
        check(kernels, x, None, None, centred, target)
        check(kernels, x, None, sample(k), centred, target, scale=0.5, zero_point=3)


def test_a_large_mean_does_not_cancel_the_variance(kernels: Kernels) -> None:
    x = sample(3, 500) / 4 + 4096
    y = (x.double() - x.double().mean(1, keepdim=True)) / x.double().std(1, correction=0, keepdim=True)
    q = torch.empty(3, 500, dtype=torch.int8)
    kernels.run(
        "norm_quantize", b"f", b"s", x, None, None, 1e-12, 1, torch.tensor([0.05]), None, output(q), None, None, 3, 500
    )
    assert (q.double() - (y / 0.05).round().clamp(-128, 127)).abs().max() <= 1


def test_more_rows_than_one_block_takes(kernels: Kernels) -> None:
    check(kernels, sample(100, 5), None, None, True, torch.uint8)
