"""quantize_int8 on the CPU, static and dynamic: every instruction set against the reference, to the bit."""

import pytest
import torch

from tests.ops.native_cases import INT8, assert_same, floats
from torchaccel import ops
from torchaccel.ops.quantize_int8 import _dynamic_reference, _static_reference

INF, NAN = float("inf"), float("nan")
SIZES = (0, 1, 2, 15, 16, 17, 31, 33, 64, 100, 1000)


def awkward(n: int, seed: int) -> torch.Tensor:
    """Floats that land on halves, beyond the range, on signed zeros, denormals and what is not finite."""
    x = floats((n,), seed, 40.0)
    x[::3] = (x[::3]).round() + 0.5
    special = torch.tensor([0.0, -0.0, 1e30, -1e30, 1e-40, INF, -INF, NAN, 127.5, -128.5, 254.5, 255.5])
    count = min(n, len(special))
    x[torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:count]] = special[:count]
    return x


@pytest.mark.parametrize("dtype", INT8)
def test_static(isa: str, dtype: torch.dtype) -> None:
    for n in SIZES:
        for scale in (1.0, 0.37, 1e-30, 1e30):
            for zero_point in (None, 0, -7, 200, 2**31 - 1, -(2**31)):
                shift = None if zero_point is None else torch.tensor([zero_point], dtype=torch.int32)
                x, step = awkward(n, n), torch.tensor([scale])
                assert_same(ops.quantize_int8(x, step, shift, dtype), _static_reference(x, step, shift, dtype))


def test_static_keeps_strides(isa: str) -> None:
    scale, zero_point = torch.tensor(0.1), torch.tensor(5, dtype=torch.int32)
    x = floats((2, 6, 5, 7), 1, 5.0)
    views = (
        x.contiguous(memory_format=torch.channels_last), x.transpose(1, 3), x[:, 1:4], x[..., ::2], x[0, 0, 0, 0],
        x[:, :1].expand(2, 4, 5, 7), x.flatten()[1:100], x[:0],
    )  # fmt: skip
    for view in views:
        assert_same(ops.quantize_int8(view, scale, zero_point), _static_reference(view, scale, zero_point, torch.int8))


@pytest.mark.parametrize("dtype", INT8)
def test_dynamic(isa: str, dtype: torch.dtype) -> None:
    for k in SIZES:
        rows = [floats((k,), k, s) for s in (1.0, 1e-30, 1e-42, 1e38, 0.0)]
        rows += [rows[0].abs(), -rows[0].abs(), rows[0] + 100, torch.full((k,), 3e38), torch.full((k,), -0.0)]
        if k:
            for value in (NAN, INF, -INF, 3.4e38):
                row = floats((k,), k + 1)
                row[k // 2] = value
                rows.append(row)
            rows.append(torch.cat([torch.tensor([3.4e38]), torch.full((k - 1,), -3.4e38)]))
        x = torch.stack(rows)
        for got, want in zip(ops.quantize_int8_dynamic(x, dtype), _dynamic_reference(x, dtype), strict=True):
            assert_same(got, want)


def test_dynamic_shapes_and_views(isa: str) -> None:
    x = floats((3, 4, 30), 2)
    for view in (x, x[:, :, 1:20], x.transpose(0, 2), x[0, 0], x[:0], x[:, :0]):
        for got, want in zip(ops.quantize_int8_dynamic(view), _dynamic_reference(view, torch.int8), strict=True):
            assert_same(got, want)


def test_a_row_with_nan_gives_nan_downstream(isa: str) -> None:
    x = floats((3, 32), 3)
    x[1, 7] = NAN
    q, scale, zero_point = ops.quantize_int8_dynamic(x)
    b = torch.ones(5, 32, dtype=torch.int8)
    y = ops.int8_linear(q, b, scale, torch.ones(5), zero_point)
    assert y[1].isnan().all() and y[0].isfinite().all() and y[2].isfinite().all()


def test_threads_agree(isa: str, threads: None) -> None:
    x, scale = floats((300, 1111), 4, 3.0), torch.tensor([0.02])
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        results.append((ops.quantize_int8(x, scale), *ops.quantize_int8_dynamic(x, torch.uint8)))
    wanted = (_static_reference(x, scale, None, torch.int8), *_dynamic_reference(x, torch.uint8))
    for one, two, want in zip(*results, wanted, strict=True):
        assert_same(one, two)
        assert_same(one, want)


def test_direct_calls_are_checked() -> None:
    x, scale = floats((4, 8), 5), torch.ones(1)
    op = torch.ops.torchaccel
    for call, message in (
        (lambda: op.quantize_int8(x.half(), scale, None, torch.int8), "x is torch.float16"),
        (lambda: op.quantize_int8(x, scale, None, torch.int32), "dtype is torch.int32"),
        (lambda: op.quantize_int8(x, torch.ones(2), None, torch.int8), "scale has 2 elements"),
        (lambda: op.quantize_int8_dynamic(x.double(), torch.int8), "x is dtype"),
        (lambda: op.quantize_int8_dynamic(x[0, 0], torch.int8), "x has no dimensions"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()
