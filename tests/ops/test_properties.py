"""Hypothesis: every op against the numpy oracle, over odd sizes, strides, groups, dilation, empty tensors and scales.

Each op runs through its public function, on whatever serves it here; int8 and float32 results are equal to the bit.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ops import oracle
from torchaccel import _native, ops
from torchaccel.ops import blocks

CASES = settings(max_examples=500, deadline=None, derandomize=True)
INT8 = st.sampled_from([torch.int8, torch.uint8])
ISAS = _native.isas_available() or ("reference",)


@pytest.fixture(autouse=True, params=ISAS)
def isa(request: pytest.FixtureRequest):
    """Each instruction set in turn."""
    used = _native.isa()
    if used is not None:
        _native.force_isa(request.param)
    yield
    if used is not None:
        _native.force_isa(used)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def integers(shape: tuple[int, ...], dtype: torch.dtype, g: torch.Generator) -> Tensor:
    """The whole range, ends included; weights stay within [-127, 127]."""
    low, high = (0, 256) if dtype == torch.uint8 else (-128, 128)
    return torch.randint(low, high, shape, generator=g).to(dtype)


def weights(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    return torch.randint(-127, 128, shape, generator=g).to(torch.int8)


def strided(t: Tensor, how: str) -> Tensor:
    """The same values with other strides: behind an offset, with gaps, or transposed in memory."""
    if how == "offset":
        return torch.cat([t.new_ones(1), t.flatten()])[1:].view(t.shape)
    if how == "gaps" and t.dim():
        wide = t.new_ones(*t.shape[:-1], 2 * t.shape[-1] + 1)
        wide[..., : 2 * t.shape[-1] : 2] = t
        return wide[..., : 2 * t.shape[-1] : 2]
    if how == "transposed" and t.dim() > 1:
        return t.transpose(0, -1).contiguous().transpose(0, -1)
    return t


STRIDES = st.sampled_from(["contiguous", "offset", "gaps", "transposed"])
RELU = st.sampled_from(["none", "relu", "relu6"])
OUTPUTS = st.sampled_from([None, torch.int8, torch.uint8])


def output_arguments(out: torch.dtype | None, spread: float, zero_point: int) -> tuple[dict, tuple | None]:
    """The op's arguments for an output type, and the oracle's."""
    if out is None:
        return {}, None
    scale = torch.tensor([spread / 60 + 1e-6])
    z = zero_point if out == torch.uint8 else zero_point - 128
    given = {"out_dtype": out, "scale_out": scale, "zero_point_out": torch.tensor([z], dtype=torch.int32)}
    return given, (oracle.array(torch.empty(0, dtype=out)).dtype, scale.numpy(), z)


@CASES
@given(
    m=st.integers(0, 33), n=st.integers(1, 40), k=st.integers(0, 70), dtype=INT8, how=STRIDES, per_row=st.booleans(),
    bias=st.booleans(), relu=RELU, out=OUTPUTS, z=st.integers(0, 255), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_int8_linear(m, n, k, dtype, how, per_row, bias, relu, out, z, seed) -> None:
    g = generator(seed)
    a, b = integers((m, k), dtype, g), weights((n, k), g)
    rows = m if per_row else 1
    scale_a, scale_b = torch.rand(rows, generator=g) + 0.01, torch.rand(n, generator=g) + 0.01
    zero_point = integers((rows,), dtype, g).to(torch.int32)
    added = torch.randn(n, generator=g) * 100 if bias else None
    arguments, expected_out = output_arguments(out, 73.0 * 73 * 0.25 * max(k, 1) ** 0.5, z)
    y = ops.int8_linear(
        strided(a, how), strided(b, how), scale_a, scale_b, zero_point, added,
        activation=relu, **arguments,
    )  # fmt: skip
    expected = oracle.finish(
        oracle.matmul(a.numpy(), b.numpy()), b.numpy().astype(np.int64).sum(1), zero_point.numpy()[:, None],
        scale_a.numpy()[:, None], scale_b.numpy(), oracle.array(added), None, relu, expected_out,
    )  # fmt: skip
    oracle.equal(y, expected)


@st.composite
def geometries(draw: st.DrawFn, groups: bool) -> dict:
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    least = [max(d * (k - 1) + 1 - 2 * p, 1) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    return {
        "n": draw(st.integers(0, 3)),
        "size": tuple(draw(st.integers(low, low + 7)) for low in least),
        "kernel": kernel,
        "stride": draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        "padding": padding,
        "dilation": dilation,
        "groups": draw(st.sampled_from([1, 1, 2, 3])) if groups else 1,
    }


def conv_case(geometry: dict, c: int, o: int, dtype: torch.dtype, per_image: bool, seed: int):
    g = generator(seed)
    n = geometry["n"]
    a = integers((n, c, *geometry["size"]), dtype, g)
    b = weights((o, c // geometry["groups"], *geometry["kernel"]), g)
    images = n if per_image else 1
    scale_a, scale_b = torch.rand(images, generator=g) + 0.01, torch.rand(o, generator=g) + 0.01
    return g, a, b, scale_a, scale_b, integers((images,), dtype, g).to(torch.int32)


def conv_oracle(geometry, a, b, scale_a, scale_b, zero_point, bias, residual, relu, out) -> np.ndarray:
    fill = np.broadcast_to(zero_point.numpy(), (a.shape[0],)) if a.shape[0] else np.zeros(0)
    acc = oracle.conv(
        a.numpy(), b.numpy(), geometry["kernel"], geometry["stride"], geometry["padding"], geometry["dilation"],
        geometry["groups"], fill,
    )  # fmt: skip
    expected = oracle.finish(
        acc, b.numpy().astype(np.int64).sum((1, 2, 3)), zero_point.numpy().reshape(-1, 1, 1, 1),
        scale_a.numpy().reshape(-1, 1, 1, 1), scale_b.numpy(), oracle.array(bias),
        None if residual is None else residual.numpy().transpose(0, 2, 3, 1), relu, out,
    )  # fmt: skip
    return expected.transpose(0, 3, 1, 2)


LAYOUTS = st.sampled_from(["nchw", "channels_last", "gaps"])


def laid_out(t: Tensor, layout: str) -> Tensor:
    if layout == "gaps":
        return strided(t, "gaps")
    return t.contiguous(memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format)


def assert_channels_last(y: Tensor) -> None:
    n, c, h, w = y.shape
    assert y.stride() == torch.empty(n, c, h, w, memory_format=torch.channels_last).stride()


@CASES
@given(
    geometry=geometries(groups=True), c=st.integers(1, 7), o=st.integers(1, 19), dtype=INT8, layout=LAYOUTS,
    per_image=st.booleans(), bias=st.booleans(), residual=st.sampled_from(["none", "float", "int8"]),
    relu=RELU, out=OUTPUTS, z=st.integers(0, 255), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_int8_conv2d(geometry, c, o, dtype, layout, per_image, bias, residual, relu, out, z, seed) -> None:
    c, o = c * geometry["groups"], o * geometry["groups"]
    g, a, b, scale_a, scale_b, zero_point = conv_case(geometry, c, o, dtype, per_image, seed)
    added = torch.randn(o, generator=g) * 100 if bias else None
    size = ops._conv.output_size(
        geometry["size"], geometry["kernel"], geometry["stride"], geometry["padding"], geometry["dilation"]
    )
    carried, real, kinds = None, None, {}
    if residual == "float":
        carried = real = torch.randn(geometry["n"], o, *size, generator=g) * 50
    elif residual == "int8":
        carried = integers((geometry["n"], o, *size), torch.uint8, g)
        kinds = {"scale_residual": torch.tensor([1.7]), "zero_point_residual": torch.tensor([9], dtype=torch.int32)}
        real = (carried.to(torch.int32) - 9).to(torch.float32) * torch.tensor(1.7)
    arguments, expected_out = output_arguments(out, 73.0 * 73 * 0.25 * b[0].numel() ** 0.5, z)
    y = ops.int8_conv2d(
        laid_out(a, layout), laid_out(b, layout), scale_a, scale_b, zero_point, added,
        None if carried is None else laid_out(carried, layout), **kinds, stride=geometry["stride"],
        padding=geometry["padding"], dilation=geometry["dilation"], groups=geometry["groups"],
        activation=relu, **arguments,
    )  # fmt: skip
    assert_channels_last(y)
    expected = conv_oracle(geometry, a, b, scale_a, scale_b, zero_point, added, real, relu, expected_out)
    oracle.equal(y, expected)


@CASES
@given(
    geometry=geometries(groups=False), c=st.integers(1, 6), o=st.integers(1, 6),
    pattern=st.sampled_from(["1x4", "4x4"]), sparsity=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    dtype=INT8, layout=LAYOUTS, per_image=st.booleans(), bias=st.booleans(),
    relu=RELU, out=OUTPUTS, z=st.integers(0, 255), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_sparse_int8_conv2d(
    geometry, c, o, pattern, sparsity, dtype, layout, per_image, bias, relu, out, z, seed
) -> None:
    rows = blocks.block_of(pattern)[0]
    g, a, b, scale_a, scale_b, zero_point = conv_case(geometry, 4 * c, rows * o, dtype, per_image, seed)
    keep = torch.rand(o, 1, c, 1, *geometry["kernel"], generator=g) >= sparsity
    b = (b.view(o, rows, c, 4, *geometry["kernel"]) * keep).view(b.shape)
    added = torch.randn(rows * o, generator=g) * 100 if bias else None
    arguments, expected_out = output_arguments(out, 73.0 * 73 * 0.25 * b[0].numel() ** 0.5, z)
    values, columns, row_offsets = blocks.to_blocks(b, pattern)
    assert torch.equal(blocks.from_blocks(values, columns, row_offsets, 4 * c, geometry["kernel"]), b)
    y = ops.sparse_int8_conv2d(
        laid_out(a, layout), values, columns, row_offsets, geometry["kernel"], scale_a, scale_b, zero_point, added,
        stride=geometry["stride"], padding=geometry["padding"], dilation=geometry["dilation"],
        activation=relu, **arguments,
    )  # fmt: skip
    assert_channels_last(y)
    expected = conv_oracle(geometry, a, b, scale_a, scale_b, zero_point, added, None, relu, expected_out)
    oracle.equal(y, expected)


FLOATS = st.one_of(
    st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False),
    st.floats(-256, 256, width=32, allow_subnormal=False),
    st.sampled_from([0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-45, 3.4e38, 0.5, 1.5, 2.5]),
)  # fmt: skip


@CASES
@given(
    values=st.lists(FLOATS, min_size=0, max_size=70), dtype=INT8,
    scale=st.floats(2.0**-120, 2.0**100, width=32, allow_subnormal=False), how=STRIDES, z=st.integers(0, 255),
)  # fmt: skip
def test_quantize_int8(values, scale, dtype, how, z) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    z = z if dtype == torch.uint8 else z - 128
    s = torch.tensor([scale], dtype=torch.float32)
    q = ops.quantize_int8(strided(x, how), s, torch.tensor([z], dtype=torch.int32), dtype)
    info = torch.iinfo(dtype)
    with np.errstate(all="ignore"):
        steps = np.rint(x.numpy() * (np.float32(1) / s.numpy())).astype(np.float64)
        expected = np.clip(np.where(np.isnan(steps), 0, steps) + z, info.min, info.max)
    oracle.equal(q, expected.astype(oracle.array(q).dtype))


@CASES
@given(
    rows=st.integers(0, 5), k=st.integers(0, 70), dtype=INT8, how=STRIDES,
    size=st.sampled_from([1e-42, 1e-3, 1.0, 3e38]), shift=st.sampled_from([-1.0, 0.0, 0.4, 1.0]),
    seed=st.integers(0, 2**31),
)  # fmt: skip
def test_quantize_int8_dynamic(rows, k, dtype, how, size, shift, seed) -> None:
    x = (torch.rand(rows, k, generator=generator(seed)) * 2 - 1 + shift) / 2 * size
    q, scale, zero_point = ops.quantize_int8_dynamic(strided(x, how), dtype)
    assert q.is_contiguous() and q.shape == x.shape and scale.shape == zero_point.shape == (rows,)
    # Within half a step of the input, but for what rounding the scale itself costs.
    back = (q.to(torch.float64) - zero_point.view(-1, 1)) * scale.to(torch.float64).view(-1, 1)
    assert ((back - x).abs() <= scale.view(-1, 1) * 0.5001 + 1e-45).all()
    if k and dtype == torch.int8:
        expected = np.maximum(np.abs(x.numpy()).max(1) / np.float32(127), np.finfo(np.float32).tiny)
        oracle.equal(scale, expected.astype(np.float32))
        assert not zero_point.any()


@CASES
@given(k=st.integers(1, 40), at=st.integers(0, 39), bad=st.sampled_from(["nan", "inf", "-inf"]), dtype=INT8)
def test_a_row_that_is_not_finite_says_so(k, at, bad, dtype) -> None:
    x = torch.ones(3, k)
    x[1, at % k] = float(bad)
    _, scale, _ = ops.quantize_int8_dynamic(x, dtype)
    assert torch.isnan(scale).tolist() == [False, True, False]
