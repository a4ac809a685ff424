"""int8_linear and pack_int8 on the CPU: every instruction set against the reference, to the bit."""

import pytest
import torch
from torch import Tensor

from tests.ops.native_cases import INT8, OUT, assert_same, epilogue, integers
from torchaccel import _native, ops
from torchaccel.ops.int8_linear import _reference

NATIVE = ("quantize_int8", "quantize_int8_dynamic", "pack_int8", "int8_linear", "int8_conv2d", "sparse_int8_conv2d")
ACTIVATIONS = ("none", "relu", "gelu", "silu")


def reference(a: Tensor, b: Tensor, activation: str = "none", **kw) -> Tensor:
    names = ("scale_a", "scale_b", "zero_point", "bias")
    rest = (kw.get("out_dtype", torch.float32), kw.get("scale_out"), kw.get("zero_point_out"), None)
    return _reference(a, b, b.sum(1, dtype=torch.int32), *(kw.get(name) for name in names), activation, *rest)


def both(
    m: int, n: int, k: int, a_dtype: torch.dtype, out_dtype: torch.dtype, per_row: bool, activation: str, packed: bool
) -> tuple[Tensor, Tensor]:
    """The native result and the reference's for random arguments."""
    seed = m * 10007 + n * 101 + k
    a, b = integers((m, k), a_dtype, seed), integers((n, k), torch.int8, seed + 1)
    kw = epilogue(a, n, k, m, seed, out_dtype, per_row)
    layout = ops.pack_int8(b) if packed else None
    return ops.int8_linear(a, b, activation=activation, packed=layout, **kw), reference(a, b, activation, **kw)


def test_kernels_are_registered() -> None:
    for op in NATIVE:
        assert ops.has_kernel(op, "cpu"), f"{op} has no native CPU kernel; is the library built?"


def test_forcing() -> None:
    assert _native.isa() in _native.isas_available()
    assert "scalar" in _native.isas_available()
    with pytest.raises(ValueError, match="accepted are"):
        _native.force_isa("sse9")


@pytest.mark.parametrize("a_dtype", INT8)
def test_every_depth_and_width(isa: str, a_dtype: torch.dtype) -> None:
    for k in range(1, 71):
        got, want = both(1 + k % 9, 1 + k * 7 % 40, k, a_dtype, OUT[k % 3], k % 2 == 0, "none", k % 3 > 0)
        assert_same(got, want)


@pytest.mark.parametrize("out_dtype", OUT)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_outputs_and_activations(isa: str, out_dtype: torch.dtype, activation: str) -> None:
    sizes = ((1, 64, 96, False), (7, 33, 130, True), (64, 48, 64, True), (65, 16, 36, False), (130, 70, 33, True))
    for m, n, k, per_row in sizes:
        got, want = both(m, n, k, torch.uint8 if m % 2 else torch.int8, out_dtype, per_row, activation, True)
        assert_same(got, want, activation)


def test_row_counts(isa: str) -> None:
    for m in (*range(1, 35), 63, 64, 66, 127, 129):
        assert_same(*both(m, 33, 20, torch.int8, torch.float32, True, "none", True))


@pytest.mark.parametrize(("m", "n", "k"), [(0, 8, 8), (8, 0, 8), (3, 5, 0), (0, 0, 0)])
def test_empty(isa: str, m: int, n: int, k: int) -> None:
    for packed in (False, True):
        assert_same(*both(m, n, k, torch.uint8, torch.float32, False, "none", packed))


def test_without_options_and_with_leading_sizes(isa: str) -> None:
    a, b = integers((3, 5, 37), torch.int8, 1), integers((19, 37), torch.int8, 2)
    scales = {"scale_a": torch.tensor([0.5]), "scale_b": torch.linspace(0.1, 1, 19)}
    assert_same(ops.int8_linear(a, b, **scales), reference(a, b, **scales))


def test_extremes_do_not_saturate(isa: str) -> None:
    one = {"scale_a": torch.ones(1), "scale_b": torch.ones(17)}
    for dtype, value in ((torch.int8, -128), (torch.int8, 127), (torch.uint8, 255)):
        for weight in (-128, 127):
            a, b = torch.full((5, 64), value, dtype=dtype), torch.full((17, 64), weight, dtype=torch.int8)
            assert_same(ops.int8_linear(a, b, **one), torch.full((5, 17), float(64 * value * weight)))


def test_non_finite_scales_and_zero_point_out(isa: str) -> None:
    a, b = integers((4, 40), torch.int8, 3), integers((20, 40), torch.int8, 4)
    kw = epilogue(a, 20, 40, 4, 5, torch.int8, True)
    kw["scale_a"][:3] = torch.tensor([float("nan"), float("inf"), 1e30])
    for zero_point in (0, -128, 127, 70000, -(2**31)):
        kw["zero_point_out"] = torch.tensor([zero_point], dtype=torch.int32)
        assert_same(ops.int8_linear(a, b, activation="relu", **kw), reference(a, b, "relu", **kw))
    assert ops.int8_linear(a, b, kw["scale_a"], kw["scale_b"], activation="relu")[0].isnan().all()


def test_negative_zero_survives(isa: str) -> None:
    a, b = integers((3, 8), torch.int8, 11), torch.zeros(17, 8, dtype=torch.int8)
    scales = {"scale_a": torch.ones(1), "scale_b": -torch.ones(17)}
    got = ops.int8_linear(a, b, **scales)
    assert got.signbit().all()
    assert_same(got, reference(a, b, **scales))


def test_views_and_strides(isa: str) -> None:
    wide, b = integers((9, 101), torch.int8, 6), integers((2, 24, 48), torch.int8, 7)[1]
    kw = epilogue(wide, 24, 48, 9, 8, torch.float32, True)
    for a in (wide[:, 1:49], wide[:, 3:99:2], wide.flatten()[5 : 5 + 9 * 48].view(9, 48)):
        assert_same(ops.int8_linear(a, b, **kw), reference(a, b, **kw))
    kw["scale_b"] = torch.rand(48)[::2]
    assert_same(ops.int8_linear(wide[:, :48], b, **kw), reference(wide[:, :48], b, **kw))


def test_threads_agree(isa: str, threads: None) -> None:
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        got, want = both(150, 200, 300, torch.uint8, torch.float32, True, "silu", True)
        assert_same(got, want, "silu")
        results.append(got)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_instruction_sets_agree_on_smooth_activations() -> None:
    before, results = _native.isa(), []
    for name in _native.isas_available():
        _native.force_isa(name)
        results.append(both(50, 40, 64, torch.int8, torch.float32, True, "gelu", True)[0])
    _native.force_isa(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_direct_calls_are_checked() -> None:
    a, b = integers((4, 8), torch.int8, 9), integers((6, 8), torch.int8, 10)
    good: list = [a, b, b.sum(1, dtype=torch.int32), torch.ones(1), torch.ones(6), None, None, "none"]
    good += [torch.float32, None, None, None]
    torch.ops.torchaccel.int8_linear(*good)
    bad = {
        0: (a.float(), "a is torch.float32"),
        1: (b[:, :7], "b has K=7"),
        2: (good[2][:5], "colsum has shape"),
        3: (torch.ones(3), "scale_a has shape"),
        4: (torch.ones(6).double(), "scale_b is"),
        5: (torch.ones(4), "zero_point is"),
        6: (torch.ones(5), "bias has shape"),
        7: ("tanh", "activation is 'tanh'"),
        8: (torch.float16, "out_dtype is torch.float16"),
        9: (torch.ones(1), "scale_out"),
        11: (torch.zeros(1, dtype=torch.int8), "packed has shape"),
    }
    for position, (value, message) in bad.items():
        args = list(good)
        args[position] = value
        with pytest.raises(RuntimeError, match=message):
            torch.ops.torchaccel.int8_linear(*args)
