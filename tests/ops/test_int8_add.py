"""Hypothesis: int8_add against numpy on each instruction set; strides, activations, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.ops import oracle
from tests.ops.native_cases import assert_same
from tests.ops.test_properties import (  # noqa: F401 (isa runs each test on each instruction set)
    CASES,
    INT8,
    OUTPUTS,
    RELU,
    STRIDES,
    generator,
    integers,
    isa,
    output_arguments,
    strided,
)
from torchaccel import ops
from torchaccel.ops.int8_add import reference


@CASES
@given(
    shape=st.lists(st.integers(0, 7), min_size=1, max_size=4).map(tuple), dtypes=st.tuples(INT8, INT8),
    hows=st.tuples(STRIDES, STRIDES), relu=RELU, out=OUTPUTS, z=st.integers(0, 255), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_int8_add(shape, dtypes, hows, relu, out, z, seed) -> None:
    g = generator(seed)
    terms = [integers(shape, dtype, g) for dtype in dtypes]
    scales = [torch.rand(1, generator=g) + 0.01 for _ in terms]
    shifts = [integers((1,), dtype, g).to(torch.int32) for dtype in dtypes]
    arguments, expected_out = output_arguments(out, 73.0, z)
    a, b = (strided(term, how) for term, how in zip(terms, hows, strict=True))
    y = ops.int8_add(a, b, scales[0], shifts[0], scales[1], shifts[1], relu, **arguments)
    assert y.stride() == torch.empty_like(a, dtype=y.dtype).stride()
    first, second = (
        (term.numpy().astype(np.int64) - shift.numpy()).astype(np.float32) * scale.numpy()
        for term, shift, scale in zip(terms, shifts, scales, strict=True)
    )
    ones, none = np.ones(1, np.float32), np.zeros(1, np.int64)
    expected = oracle.finish(none, none, none, ones, ones, None, first + second, relu, expected_out)
    oracle.equal(y, expected)


@pytest.mark.parametrize("activation", ["gelu", "silu"])
@pytest.mark.parametrize("out", [torch.float32, torch.int8, torch.uint8])
def test_curved_activations(activation: str, out: torch.dtype) -> None:
    g = generator(3)
    a, b = integers((3, 70, 5), torch.int8, g), integers((3, 70, 5), torch.uint8, g)
    scale = None if out == torch.float32 else torch.tensor([0.05])
    shift = torch.tensor([100], dtype=torch.int32)
    arguments = (a, b, torch.tensor([0.03]), None, torch.tensor([0.02]), shift, activation, out, scale, None)
    assert_same(ops.int8_add(*arguments), reference(*arguments), activation)


def test_threads_agree(threads: None) -> None:
    a, b = (integers((99, 1111), torch.int8, generator(seed)) for seed in (0, 1))
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        results.append(ops.int8_add(a, b, torch.tensor([0.1]), None, torch.tensor([0.3]), None, "relu"))
    assert torch.equal(*results)


A, ONE = torch.zeros(2, 8, dtype=torch.int8), torch.ones(1)
BAD: list[tuple[Callable[[], Tensor], str]] = [
    (lambda: ops.int8_add(A.float(), A, ONE, None, ONE, None), "int8_add: a is torch.float32, accepted are"),
    (lambda: ops.int8_add(A, A.int(), ONE, None, ONE, None), "b is torch.int32, accepted are"),
    (lambda: ops.int8_add(A, A[:1], ONE, None, ONE, None), r"b has shape \(1, 8\), accepted is \(2, 8\)"),
    (lambda: ops.int8_add(A, A, torch.ones(2), None, ONE, None), r"scale_a has shape \(2,\), accepted is \(1,\)"),
    (lambda: ops.int8_add(A, A, ONE, None, ONE, torch.zeros(8, dtype=torch.int32)), r"zero_point_b has shape \(8,\)"),
    (lambda: ops.int8_add(A, A, ONE, None, ONE, None, "tanh"), "activation is 'tanh', accepted are"),
    (lambda: ops.int8_add(A, A, ONE, None, ONE, None, "relu", torch.int8), "out_dtype is torch.int8 with no scale_out"),
    (lambda: ops.int8_add(A, A, ONE, None, ONE, None, "relu", torch.int32), "out_dtype is torch.int32, accepted are"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_direct_calls_are_checked() -> None:
    op = torch.ops.torchaccel.int8_add
    for arguments, message in (
        ((A.float(), A, ONE, None, ONE, None, "none", torch.float32, None, None), "a is torch.float32"),
        ((A, A[:1], ONE, None, ONE, None, "none", torch.float32, None, None), "b has shape"),
        ((A, A, ONE, None, ONE.double(), None, "none", torch.float32, None, None), "scale_b is dtype"),
        ((A, A, ONE, None, ONE, None, "tanh", torch.float32, None, None), "activation is 'tanh'"),
        ((A, A, ONE, None, ONE, None, "none", torch.int8, None, None), "no scale_out"),
    ):
        with pytest.raises(RuntimeError, match=message):
            op(*arguments)
