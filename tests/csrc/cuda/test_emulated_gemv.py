"""The CUDA products of up to 8 rows, run by csrc/cuda/emulate: int8 to the bit, float activations by the house rule."""

from __future__ import annotations

import ctypes
import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness import MACHINES, Kernels, Machine, apart, compiled, output, workspace
from product_case import ACTIVATIONS, TYPES, Epilogue
from torchaccel import testing
from torchaccel.ops import _epilogue, _tiles

LETTERS = {torch.int8: b"s", torch.uint8: b"u", torch.float16: b"h", torch.bfloat16: b"b", torch.float32: b"f"}
INT8 = (torch.int8, torch.uint8)
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
# Channels around a block's and a band's, K around a chunk, a tile and the tiles of a block's ring.
CHANNELS = (1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 130)
DEPTHS = (1, 3, 16, 20, 63, 64, 65, 200, 1000, 1024)


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return compiled("gemv")


def integers(*shape: int, dtype: torch.dtype = torch.int8, seed: int = 0) -> Tensor:
    info = torch.iinfo(dtype)
    low = max(info.min, -127)
    return torch.randint(low, info.max + 1, shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def floats(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def most_channels(dtype: torch.dtype) -> int:
    """Of a block."""
    return 32 if dtype == torch.float32 else 64


def product(
    kernels: Kernels,
    x: Tensor,  # [M, K]
    b: Tensor,  # [N, K] int8
    out_dtype: torch.dtype,
    channels: int = 16,
    splits: int = 1,
    machine: Machine = MACHINES[0],
    activation: str = "none",
    **terms: Tensor | None,
) -> Tensor:
    """[M, N]; `terms` are fields of Epilogue."""
    (m, k), n = x.shape, b.shape[0]
    out = torch.empty(m, n, dtype=out_dtype)
    e = Epilogue(rows=m, channels=n, out=out.data_ptr(), out_type=TYPES[out_dtype], wide=n % 8 == 0)
    e.activation = ACTIVATIONS.index(activation)
    given = {name: apart(tensor) for name, tensor in terms.items() if tensor is not None}
    for name, tensor in given.items():
        setattr(e, name, tensor.data_ptr())
    e.zero_rows, e.scale_rows = (int(given.get(name, x[0]).numel() == m > 1) for name in ("zero_point", "scale_a"))
    if "zero_point" in given:
        given["colsum"] = apart(b.sum(1, dtype=torch.int32))
        e.colsum = given["colsum"].data_ptr()
    partial = workspace(torch.empty(splits, m, n, dtype=torch.int32)) if splits > 1 else None
    kernels.run(
        "gemv", LETTERS[x.dtype], x, k, _tiles.pack(b, two_four=False, skip=False).tiles, channels, splits,
        ctypes.pointer(e), partial, machine=machine, buffers=given | {"out": output(out)},
    )  # fmt: skip
    return out


def check_int8(kernels: Kernels, m: int, n: int, k: int, dtype: torch.dtype, seed: int, **plan: object) -> None:
    """int32 sums to the bit, and through all that an epilogue does."""
    a, b = integers(m, k, dtype=dtype, seed=seed), integers(n, k, seed=seed + 1)
    acc = a.int() @ b.int().T
    chance = random.Random(seed)
    per_row = chance.random() < 0.5
    scale_a = floats(m if per_row else 1, seed=seed).abs() + 0.1
    zero_point = integers(m if per_row else 1, seed=seed + 2).int() if chance.random() < 0.7 else None
    scale_b, bias = floats(n, seed=seed + 3) / 1000, floats(n, seed=seed + 4) if chance.random() < 0.7 else None
    activation = chance.choice(("none", "relu", "relu6"))
    out_dtype = chance.choice((*FLOATS, *INT8))
    step = torch.tensor([0.037]) if out_dtype in INT8 else None
    shift = torch.tensor([9], dtype=torch.int32) if out_dtype in INT8 and chance.random() < 0.7 else None
    got = product(
        kernels, a, b, out_dtype, activation=activation, scale_a=scale_a, zero_point=zero_point, scale_b=scale_b,
        bias=bias, scale_out=step, zero_point_out=shift, **plan,
    )  # fmt: skip
    want = _epilogue.finish(
        acc, b.sum(1, dtype=torch.int32), scale_a, scale_b, zero_point, bias, None, None, None, activation, out_dtype,
        step, shift,
    )  # fmt: skip
    assert torch.equal(got, want), f"{int((got != want).sum())} of {want.numel()} differ"


def check_floats(kernels: Kernels, x: Tensor, n: int, seed: int, **plan: object) -> None:
    k = x.shape[1]
    b, scale_b, bias = integers(n, k, seed=seed), floats(n, seed=seed).abs() / 127, floats(n, seed=seed + 1)
    y = product(kernels, x, b, x.dtype, scale_b=scale_b, bias=bias, **plan)
    w = b.double() * scale_b.double()[:, None]
    testing.assert_exact_enough(
        y, F.linear(x.double(), w, bias.double()), F.linear(x.double().abs(), w.abs(), bias.double().abs()), k,
        F.linear(x, w.to(x.dtype), bias.to(x.dtype)),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", INT8)
@pytest.mark.parametrize("channels", [16, 32, 64])
@pytest.mark.parametrize("k", DEPTHS)
def test_int8(kernels: Kernels, k: int, channels: int, dtype: torch.dtype) -> None:
    for i, n in enumerate(CHANNELS):
        seed = 31 * k + n + channels
        check_int8(kernels, seed % 8 + 1, n, k, dtype, seed, channels=channels, machine=MACHINES[i % len(MACHINES)])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("channels", [16, 32, 64])
@pytest.mark.parametrize("k", DEPTHS)
def test_floats(kernels: Kernels, k: int, channels: int, dtype: torch.dtype) -> None:
    for i, n in enumerate((1, 31, 64, 130)):
        seed = 31 * k + n + channels
        if channels <= most_channels(dtype):
            x = floats(seed % 8 + 1, k, dtype=dtype, seed=seed)
            check_floats(kernels, x, n, seed, channels=channels, machine=MACHINES[i % len(MACHINES)])


@pytest.mark.parametrize("dtype", (*INT8, *FLOATS))
@pytest.mark.parametrize("m", range(1, 9))
def test_rows(kernels: Kernels, m: int, dtype: torch.dtype) -> None:
    for machine in MACHINES:
        for k in (96, 77):
            if dtype in INT8:
                check_int8(kernels, m, 40, k, dtype, m + k, channels=32, machine=machine)
            else:
                check_floats(kernels, floats(m, k, dtype=dtype, seed=m), 40, m + k, channels=32, machine=machine)


@pytest.mark.parametrize("k", [9800, 9808])
@pytest.mark.parametrize("channels", [16, 32, 64])
def test_a_ring_that_goes_round_more_than_once(kernels: Kernels, channels: int, k: int) -> None:
    for i, dtype in enumerate((*INT8, *FLOATS)):
        plan = {"channels": channels, "machine": MACHINES[i % len(MACHINES)]}
        if dtype in INT8:
            check_int8(kernels, 3, 17, k, dtype, k, **plan)
        elif channels <= most_channels(dtype):
            check_floats(kernels, floats(3, k, dtype=dtype), 17, k, **plan)


@pytest.mark.parametrize("splits", [2, 3, 16])
def test_splits(kernels: Kernels, splits: int) -> None:
    for i, (m, n, k) in enumerate(((1, 33, 2100), (8, 64, 1030), (3, 17, 64), (5, 130, 500))):
        machine = MACHINES[(i + splits) % len(MACHINES)]
        plan = {"channels": 16 << i % 3, "splits": splits, "machine": machine}
        for dtype in INT8:
            check_int8(kernels, m, n, k, dtype, n, **plan)
        for dtype in FLOATS[:2]:
            check_floats(kernels, floats(m, k, dtype=dtype, seed=n), n, k, **plan)
        check_floats(kernels, floats(m, k, seed=n), n, k, **plan | {"channels": 32})


@pytest.mark.parametrize("offset", [1, 2, 3, 8])
def test_inputs_at_any_address(kernels: Kernels, offset: int) -> None:
    for dtype in (*INT8, *FLOATS):
        make = integers if dtype in INT8 else floats
        x, b = make(4 * 128 + offset, dtype=dtype)[offset:].view(4, 128), integers(20, 128)
        got = product(kernels, x, b, torch.float32, channels=32)
        assert torch.equal(got, product(kernels, x.clone(), b, torch.float32, channels=32))


def test_smooth_activations(kernels: Kernels) -> None:
    x, b, scale_b = floats(3, 100), integers(24, 100), floats(24).abs() / 127
    for activation in ("gelu", "silu"):
        y = product(kernels, x, b, torch.float32, activation=activation, scale_b=scale_b)
        want = _epilogue.activate(F.linear(x.double(), b.double() * scale_b.double()[:, None]), activation)
        torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=1e-5)


def test_what_is_not_finite_stays_in_its_row(kernels: Kernels) -> None:
    largest = torch.finfo(torch.float32).max
    b = integers(20, 70).abs() + 1
    for dtype in FLOATS:
        x = floats(6, 70, dtype=dtype)
        for row, value in enumerate((float("nan"), float("inf"), -float("inf"), largest, 1e-44)):
            x[row, 3 * row] = value
        y = product(kernels, x, b.clamp(max=127), torch.float32, channels=32).double()
        exact = F.linear(x.double(), b.double().clamp(max=127))
        finite = exact.abs() < largest
        assert (y[0].isnan()).all() and torch.equal(y[1:3], exact[1:3])
        assert finite[4:].all() and (y - exact)[finite].abs().max() < 1e-2


def test_float32_keeps_all_its_bits(kernels: Kernels) -> None:
    x = torch.tensor([[1.0 + 2**-23, -(1.0 + 2**-12 + 2**-23), 16777215.0, 2**-133]])
    y = product(kernels, x, torch.eye(4, dtype=torch.int8) * 64, torch.float32, channels=32)
    assert torch.equal(y, x * 64)


def test_plans(kernels: Kernels) -> None:
    def plan(m: int, n: int, k: int, bytes_x: int = 1, multiprocessors: int = 132) -> tuple[int, int, int]:
        chosen = (ctypes.c_int64 * 3)()
        kernels.library.plan(*map(ctypes.c_int64, (m, n, k, bytes_x, multiprocessors)), chosen)
        return chosen[0], chosen[1], chosen[2]

    for m in (1, 8):
        assert plan(m, 8192, 8192)[1:] == (1, 0)
        channels, splits, _ = plan(m, 4096, 4096)
        assert 132 * 0.9 <= 4096 / channels * splits
    assert plan(1, 4096, 4096, bytes_x=4)[0] <= 32
    channels, splits, used = plan(3, 16, 65536)
    assert splits > 1 and used == splits * 3 * 16 * 4
    assert plan(1, 1, 1)[1:] == (1, 0)
