"""Convolutions of any geometry against the float convolution of the same integers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.nn.cases import pruned, symmetric
from torchaccel.nn import Int8Conv2d, SparseConv2d, SparseInt8Conv2d
from torchaccel.nn.dense import DenseConv2d

PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(0, 3),
    size=st.tuples(st.integers(5, 11), st.integers(5, 11)),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel=PAIRS,
    stride=PAIRS,
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    groups=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
    channels_last=st.booleans(),
)
def test_any_geometry(batch, size, channels, kernel, stride, dilation, padding, groups, bias, channels_last) -> None:
    torch.manual_seed(0)
    c, o = (4 * n for n in channels)
    conv = nn.Conv2d(c, o, kernel, stride, padding, dilation, groups, bias=bias)
    x = torch.randn(batch, c, *size)
    with_ends = torch.cat([x.flatten(), torch.ones(1)])
    given_range = symmetric(with_ends)
    # On the grid of the scale, so that quantization is exact and only the sums are compared.
    x = torch.round(x / given_range.scale) * given_range.scale
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    layers = [Int8Conv2d.from_float(conv, given_range)]
    if groups == 1:
        pruned(conv, 4, 4, 0.5)
        for layer in (SparseInt8Conv2d.from_float(conv, "4x4", given_range), SparseConv2d.from_float(conv, "1x4")):
            layers.append(layer)
    for layer in layers:
        expected = layer.to_float().double()(x.double())
        torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding", "dilation"),
    [
        ((3, 8, 10, 1), (2, 3), (1, 2), (1, 5), (1, 2)),
        ((2, 4, 18, 1), (1, 1), (2, 3), (1, 4), (1, 2)),
        ((1, 20, 16, 1), (3, 1), (1, 3), (5, 2), (3, 2)),
        ((2, 8, 9, 9), (3, 3), (1, 1), (1, 1), (1, 1)),
    ],
)
def test_dense_layers_take_any_padding(shape, kernel, stride, padding, dilation) -> None:
    """Three on which oneDNN's op with packed weights ends the process, and one that it takes."""
    torch.manual_seed(0)
    conv, x = nn.Conv2d(shape[1], 8, kernel, stride, padding, dilation), torch.randn(shape)
    with torch.no_grad():
        torch.testing.assert_close(DenseConv2d.from_float(conv)(x), conv(x))
