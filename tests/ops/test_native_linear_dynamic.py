"""int8_linear_dynamic on the CPU: every instruction set against quantization and product one after the other."""

import pytest
import torch
from torch import Tensor

from tests.ops.native_cases import INT8, OUT, assert_same, floats, integers
from torchaccel import ops
from torchaccel.ops.int8_linear import _reference as product
from torchaccel.ops.quantize_int8 import _dynamic_reference as quantized


def arguments(n: int, k: int, out_dtype: torch.dtype, seed: int) -> dict:
    out: dict = {"scale_b": floats((n,), seed).abs() * 0.02 + 0.001, "bias": floats((n,), seed + 1)}
    if out_dtype in INT8:
        out["scale_out"] = torch.tensor([0.02 * max(k, 1) ** 0.5])
        out["zero_point_out"] = torch.tensor([3 if out_dtype == torch.int8 else 130], dtype=torch.int32)
    return out


def reference(x: Tensor, b: Tensor, dtype: torch.dtype, activation: str, out_dtype: torch.dtype, kw: dict) -> Tensor:
    a, scale, zero_point = quantized(x, dtype)
    tail = (kw["bias"], activation, out_dtype, kw.get("scale_out"), kw.get("zero_point_out"), None)
    return product(a, b, b.sum(1, dtype=torch.int32), scale, kw["scale_b"], zero_point, *tail)


def check(x: Tensor, n: int, dtype: torch.dtype, out_dtype: torch.dtype, activation: str = "none") -> None:
    k = x.shape[-1]
    b, kw = integers((n, k), torch.int8, n + k), arguments(n, k, out_dtype, n)
    got = ops.int8_linear_dynamic(x, b, activation=activation, dtype=dtype, out_dtype=out_dtype, **kw)
    assert_same(got, reference(x, b, dtype, activation, out_dtype, kw), activation)


def test_kernel_is_registered() -> None:
    assert ops.has_kernel("int8_linear_dynamic", "cpu")


@pytest.mark.parametrize("dtype", INT8)
def test_rows_and_depths(isa: str, dtype: torch.dtype) -> None:
    for m in (*range(1, 20), 63, 64, 65, 130):
        check(floats((m, 5 + m * 7 % 90), m, 3.0), 1 + m * 13 % 70, dtype, OUT[m % 3])


@pytest.mark.parametrize("activation", ["relu", "relu6", "gelu", "silu"])
def test_activations(isa: str, activation: str) -> None:
    for m, n in ((3, 48), (70, 80)):
        check(floats((m, 64), m), n, torch.uint8, torch.float32, activation)


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (2, 0, 5), (2, 3, 5)])
def test_empty_and_leading_sizes(isa: str, shape: tuple[int, ...]) -> None:
    check(floats(shape, 1), 9, torch.int8, torch.float32)
    check(floats(shape, 1), 0, torch.uint8, torch.float32)


def test_rows_that_are_not_finite_or_extreme(isa: str) -> None:
    x = floats((9, 70), 2)
    x[0, 3], x[1, 69], x[2, 0] = float("nan"), float("inf"), -float("inf")
    x[3], x[4], x[5] = 0.0, 1e-42, torch.finfo(torch.float32).max
    x[6], x[7] = -x[6].abs(), x[7].abs()
    for dtype in INT8:
        check(x, 33, dtype, torch.float32)
        check(x[:4], 33, dtype, torch.float32)


def test_strides_and_packed_weights(isa: str) -> None:
    x = floats((50, 12), 5).t()
    b, kw = integers((20, 50), torch.int8, 6), arguments(20, 50, torch.float32, 7)
    want = reference(x, b, torch.uint8, "none", torch.float32, kw)
    assert_same(ops.int8_linear_dynamic(x, b, packed=ops.pack_int8(b), **kw), want)


def test_threads_agree(isa: str, threads: None) -> None:
    x, b = floats((150, 300), 8), integers((200, 300), torch.int8, 9)
    for rows in (1, 4, 150):
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(ops.int8_linear_dynamic(x[:rows], b, torch.ones(200)))
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(dtype: torch.dtype) -> None:
    x, b = floats((6, 32), 10).to(dtype), integers((8, 32), torch.int8, 11)
    a, scale, zero_point = ops.quantize_int8_dynamic(x, torch.uint8)
    want = ops.int8_linear(a, b, scale, torch.ones(8), zero_point, out_dtype=dtype)
    assert torch.equal(ops.int8_linear_dynamic(x, b, torch.ones(8), out_dtype=dtype), want)


def test_bad_input() -> None:
    x, b, scale = torch.ones(2, 8), torch.ones(4, 8, dtype=torch.int8), torch.ones(4)
    bad: list[tuple[dict, str]] = [
        ({"x": x.int()}, "x is torch.int32"),
        ({"x": torch.tensor(1.0)}, r"x has shape \(\)"),
        ({"x": x[:, :7]}, r"x has shape \(2, 7\), b has \(4, 8\)"),
        ({"b": b.float()}, "b is torch.float32"),
        ({"scale_b": scale[:3]}, r"scale_b has shape \(3,\)"),
        ({"bias": scale[:3]}, r"bias has shape \(3,\)"),
        ({"dtype": torch.float32}, "dtype is torch.float32"),
        ({"activation": "tanh"}, "activation is 'tanh'"),
        ({"out_dtype": torch.int8}, "out_dtype is torch.int8 with no scale_out"),
        ({"packed": torch.ones(3, dtype=torch.int8)}, "packed has shape"),
    ]
    for change, message in bad:
        with pytest.raises((ValueError, RuntimeError), match=f"int8_linear_dynamic: {message}"):
            ops.int8_linear_dynamic(**({"x": x, "b": b, "scale_b": scale} | change))
