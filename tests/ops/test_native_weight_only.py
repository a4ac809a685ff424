"""int8_linear_weight_only on the CPU: every instruction set against float64."""

import pytest
import torch
from torch import Tensor

from tests.ops.native_cases import assert_same, floats, integers
from torchaccel import ops
from torchaccel.ops.int8_linear_weight_only import _reference
from torchaccel.testing import assert_exact_enough


def check(x: Tensor, n: int, biased: bool = True) -> None:
    k = x.shape[-1]
    b, scale = integers((n, k), torch.int8, n + k), floats((n,), 1).abs() + 0.1
    bias = floats((n,), 2) if biased else None
    got = ops.int8_linear_weight_only(x, b, scale, bias)
    assert_same(ops.int8_linear_weight_only(x, b, scale, bias, packed=ops.pack_weight_only(b)), got)
    weight, offset = b.double() * scale.double()[:, None], 0.0 if bias is None else bias.double()
    assert_exact_enough(
        got, x.double() @ weight.t() + offset, x.double().abs() @ weight.abs().t() + abs(offset), depth=k
    )


def test_kernel_is_registered() -> None:
    assert ops.has_kernel("int8_linear_weight_only", "cpu")


def test_rows_and_widths(isa: str) -> None:
    for m in (*range(1, 18), 33):
        for n in (1, 16, 31, 48, 64, 81, 130):
            check(floats((m, 3 + m * n % 40), m), n, m % 2 == 0)


def test_exact_where_all_sums_are(isa: str) -> None:
    for m in (1, 3, 5, 9):
        x, b = integers((m, 300), torch.int8, m).float(), integers((70, 300), torch.int8, 7)
        want = (x.double() @ b.double().t()).float()
        assert torch.equal(ops.int8_linear_weight_only(x, b, torch.ones(70)), want)


@pytest.mark.parametrize("activation", ["relu", "relu6", "gelu", "silu"])
def test_activations(isa: str, activation: str) -> None:
    b, scale, bias = integers((45, 64), torch.int8, 1), torch.full((45,), 0.01), floats((45,), 3)
    for m in (2, 11):
        x = floats((m, 64), m)
        got = ops.int8_linear_weight_only(x, b, scale, bias, activation)
        torch.testing.assert_close(got, _reference(x, b, scale, bias, activation, None), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (2, 0, 5), (2, 3, 5)])
def test_empty_and_leading_sizes(isa: str, shape: tuple[int, ...]) -> None:
    check(floats(shape, 1), 9)
    check(floats(shape, 1), 0)


def test_non_finite_and_strides(isa: str) -> None:
    x = floats((40, 6), 4).t()
    check(x, 20)
    x = x.clone()
    x[0, 1], x[1, 2] = float("nan"), float("inf")
    y = ops.int8_linear_weight_only(x, integers((33, 40), torch.int8, 5) | 1, torch.ones(33), activation="relu")
    assert y[0].isnan().all() and not y[1].isfinite().all() and y[2:].isfinite().all()


def test_threads_agree(isa: str, threads: None) -> None:
    b, scale = integers((300, 256), torch.int8, 6), torch.ones(300)
    for m in (1, 20):
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(ops.int8_linear_weight_only(floats((m, 256), m), b, scale))
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_summed_in_float32(dtype: torch.dtype) -> None:
    x, b = floats((3, 96), 7).to(dtype), integers((40, 96), torch.int8, 8)
    scale, bias = torch.full((40,), 0.01), floats((40,), 9)
    got = ops.int8_linear_weight_only(x, b, scale, bias)
    assert torch.equal(got, ops.int8_linear_weight_only(x.float(), b, scale, bias).to(dtype))


def test_packing_puts_16_channels_side_by_side() -> None:
    b = integers((21, 5), torch.int8, 10)
    packed = ops.pack_weight_only(b)
    assert packed is not None and packed.shape == (2, 5, 16)
    for n in range(32):
        want = b[n] if n < 21 else torch.zeros(5, dtype=torch.int8)
        assert torch.equal(packed[n // 16, :, n % 16], want)
    with pytest.raises(ValueError, match=r"b is torch\.float32"):
        ops.pack_weight_only(torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"b has shape \(2,\)"):
        ops.pack_weight_only(b[0, :2])


def test_direct_calls_are_checked() -> None:
    x, b = floats((4, 8), 11), integers((6, 8), torch.int8, 12)
    good: list = [x, b, torch.ones(6), None, "none", ops.pack_weight_only(b)]
    torch.ops.torchaccel.int8_linear_weight_only(*good)
    bad = {
        0: (x.bfloat16(), "x is torch.bfloat16"),
        1: (b[:, :7], "b has K=7"),
        2: (torch.ones(5), "scale_b has shape"),
        3: (torch.ones(6).double(), "bias is"),
        4: ("tanh", "activation is 'tanh'"),
        5: (None, "packed is missing"),
    }
    for position, (value, message) in bad.items():
        args = list(good)
        args[position] = value
        with pytest.raises(RuntimeError, match=message):
            torch.ops.torchaccel.int8_linear_weight_only(*args)
    with pytest.raises(RuntimeError, match="packed has shape"):
        torch.ops.torchaccel.int8_linear_weight_only(*good[:5], b)
