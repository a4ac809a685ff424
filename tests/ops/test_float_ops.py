"""The float ops against float64 by the tolerance rule, over every pattern, type and geometry."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.test_properties import geometries, laid_out, weights
from torchaccel import ops, testing
from torchaccel.ops import blocks

CASES = settings(max_examples=500, deadline=None, derandomize=True)
FLOATS = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
LAYOUTS = st.sampled_from(["nchw", "channels_last", "gaps"])


def pruned(pattern: str, o: int, c: int, kernel: tuple[int, int], g: torch.Generator) -> Tensor:
    """Random weights of which about half the blocks are zero."""
    rows, columns = blocks.block_of(pattern)
    weight = torch.randn(o, c, *kernel, generator=g)
    keep = torch.rand(o // rows, c // columns, *kernel, generator=g) > 0.5
    return weight * keep.repeat_interleave(rows, 0).repeat_interleave(columns, 1)


def empty_as(x: Tensor, shape: torch.Size) -> Tensor:
    """On a CPU a float convolution's output is contiguous, unless the input is channels_last."""
    nhwc = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.empty(shape, memory_format=torch.channels_last if nhwc else torch.contiguous_format)


@settings(CASES, max_examples=250)
@given(
    pattern=st.sampled_from(list(blocks.BLOCKS)), geometry=geometries(groups=False), dtype=FLOATS, layout=LAYOUTS,
    bias=st.booleans(), residual=st.booleans(), relu=st.booleans(), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_sparse_conv2d(pattern, geometry, dtype, layout, bias, residual, relu, seed) -> None:
    g = torch.Generator().manual_seed(seed)
    rows, columns = blocks.block_of(pattern)
    reach = [d * (k - 1) for k, d in zip(geometry["kernel"], geometry["dilation"], strict=True)]
    if any(p > r for p, r in zip(geometry["padding"], reach, strict=True)):
        layout = "nchw"  # PyTorch's channels_last convolution reads wild addresses for windows of nothing but padding
    o, c = max(4, rows), max(8, columns)
    weight = pruned(pattern, o, c, geometry["kernel"], g).to(dtype)
    x = torch.randn(geometry["n"], c, *geometry["size"], generator=g).to(dtype)
    shape = geometry["stride"], geometry["padding"], geometry["dilation"]
    added = torch.randn(o, generator=g).to(dtype) if bias else None

    def conv(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return F.conv2d(x, w, b, *shape)

    exact = conv(x.double(), weight.double(), None if added is None else added.double())
    magnitude = conv(x.double().abs(), weight.double().abs(), None if added is None else added.double().abs())
    own = conv(x, weight, added)
    carried = torch.randn(exact.shape, generator=g).to(dtype) if residual else None
    if carried is not None:
        exact, magnitude, own = exact + carried.double(), magnitude + carried.double().abs(), own + carried
    if relu:
        exact, own = exact.relu(), own.relu()
    y = ops.sparse_conv2d(
        laid_out(x, layout), *blocks.to_blocks(weight, pattern), geometry["kernel"], added, carried, *shape,
        activation="relu" if relu else "none",
    )  # fmt: skip
    assert y.dtype == dtype
    assert y.stride() == empty_as(laid_out(x, layout), y.shape).stride()
    testing.assert_exact_enough(y, exact, magnitude, c * geometry["kernel"][0] * geometry["kernel"][1], own)


@CASES
@given(
    m=st.integers(0, 9), n=st.integers(1, 20), k=st.integers(0, 300), dtype=FLOATS, bias=st.booleans(),
    size=st.sampled_from([1e-2, 1.0, 100.0]), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_int8_linear_weight_only(m, n, k, dtype, bias, size, seed) -> None:
    g = torch.Generator().manual_seed(seed)
    x, b = (torch.randn(m, k, generator=g) * size).to(dtype), weights((n, k), g)
    scale = torch.rand(n, generator=g) / 1000
    added = torch.randn(n, generator=g) if bias else torch.zeros(n)
    w = b.double() * scale.double()[:, None]
    y = ops.int8_linear_weight_only(x, b, scale, added if bias else None)
    assert y.dtype == dtype and y.shape == (m, n)
    testing.assert_exact_enough(
        y, F.linear(x.double(), w, added.double()), F.linear(x.double().abs(), w.abs(), added.double().abs()), k,
        F.linear(x, w.to(dtype), added.to(dtype)),
    )  # fmt: skip


def test_weight_only_sums_do_not_overflow_half() -> None:
    x, b = torch.full((1, 4096), 16.0, dtype=torch.float16), torch.full((1, 4096), 127, dtype=torch.int8)
    assert ops.int8_linear_weight_only(x, b, torch.full((1,), 1e-4)).item() == pytest.approx(832.3, rel=1e-3)


@pytest.mark.parametrize(
    ("given", "accepted"),
    [
        (torch.tensor([1.0 + 3e-7]), True),
        (torch.tensor([1.0 + 9e-7]), False),
        (torch.tensor([float("nan")]), False),
        (torch.tensor([1], dtype=torch.int32), True),
        (torch.tensor([2], dtype=torch.int32), False),
        (torch.tensor([1.0 + 2**-9], dtype=torch.float16), True),
        (torch.tensor([1.0 + 2**-7], dtype=torch.float16), False),
    ],
)
def test_the_rule_itself(given: Tensor, accepted: bool) -> None:
    exact = torch.ones(1, dtype=torch.float64)
    own = torch.tensor([1.0 + 2**-9], dtype=torch.float16)
    if accepted:
        testing.assert_exact_enough(given, exact, exact, 1, own)
    else:
        with pytest.raises(AssertionError):
            testing.assert_exact_enough(given, exact, exact, 1, own)
