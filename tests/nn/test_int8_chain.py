"""Int8Chain gives what its layers give, to the bit: on every instruction set, in any number of threads, by reference."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.nn.chain_bodies import Layer, Recipe, images, make, recipes, running_on
from torchaccel import _native
from torchaccel.nn import Int8Chain, _chain_plan
from torchaccel.ops.int8_chain import _reference

CASES = settings(max_examples=150, deadline=None, derandomize=True)
ISAS = _native.isas_available() or ("reference",)


def laid_out(x: Tensor, layout: str) -> Tensor:
    if layout == "gaps":
        wide = x.new_ones(*x.shape[:-1], 2 * x.shape[-1] + 1)
        wide[..., : 2 * x.shape[-1] : 2] = x
        return wide[..., : 2 * x.shape[-1] : 2]
    return x.contiguous(memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format)


def equal(y: Tensor, expected: Tensor) -> None:
    assert (y.dtype, y.shape) == (expected.dtype, expected.shape)
    assert y.stride() == torch.empty(y.shape, memory_format=torch.channels_last).stride()
    assert torch.equal(y, expected), f"{(y != expected).sum()} of {y.numel()} differ"


def by_reference(chain: Int8Chain, x: Tensor) -> Tensor:
    p = chain.plan(x)
    assert p is not None
    return _reference(x, p.steps, p.values, p.indices, p.floats, p.arena, p.parts, p.out_size, p.out_dtype)


@CASES
@given(
    recipe=recipes(), n=st.integers(1, 9), threads=st.integers(1, 3), late=st.sampled_from([0, 500, 1 << 18]),
    layout=st.sampled_from(["nchw", "channels_last", "gaps"]), finite=st.booleans(),
)  # fmt: skip
def test_random_bodies(recipe: Recipe, n: int, threads: int, late: int, layout: str, finite: bool) -> None:
    body = make(recipe)
    x = images(recipe, n, finite)
    with mock.patch.object(_chain_plan, "LATE_BYTES", late), torch.no_grad():
        chain, expected = Int8Chain(body), body(x)
        assert chain.plan(x) is not None
        equal(by_reference(chain, x[:1]), expected[:1])
        for isa in ISAS:
            with running_on(isa, threads):
                equal(chain(laid_out(x, layout)), expected)
