"""Hypothesis: int8 pooling against numpy, which walks every window, on each instruction set; and what it refuses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.ops import oracle
from tests.ops.test_properties import (  # noqa: F401 (isa runs each test on each instruction set)
    CASES,
    INT8,
    LAYOUTS,
    OUTPUTS,
    assert_channels_last,
    generator,
    integers,
    isa,
    laid_out,
    output_arguments,
)
from torchaccel import ops


@st.composite
def windows(draw: st.DrawFn, dilated: bool) -> dict:
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3))) if dilated else (1, 1)
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    least = [max(d * (k - 1) + 1 - 2 * p, 1) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    return {
        "size": tuple(draw(st.integers(low, low + 7)) for low in least),
        "kernel_size": kernel,
        "stride": draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        "padding": padding,
        "ceil_mode": draw(st.booleans()),
        **({"dilation": dilation} if dilated else {}),
    }


def walk(x: np.ndarray, w: dict, of_window: Callable[[np.ndarray, int], np.ndarray]) -> np.ndarray:
    """of_window([N, C, pixels], pixels with padding) for each window of [N, C, H, W]: as the manual tells it."""
    places, inside = [], []
    for size, k, s, p, d in zip(
        w["size"], w["kernel_size"], w["stride"], w["padding"], w.get("dilation", (1, 1)), strict=True
    ):
        starts = [-p]
        while True:
            next_start = starts[-1] + s
            fits = next_start + d * (k - 1) < size + p
            hangs_over = w["ceil_mode"] and next_start < size and starts[-1] + d * (k - 1) + 1 < size + p
            if not fits and not hangs_over:
                break
            starts.append(next_start)
        places.append([[i for i in range(b, b + d * (k - 1) + 1, d) if 0 <= i < size] for b in starts])
        inside.append([sum(i < size + p for i in range(b, b + d * (k - 1) + 1, d)) for b in starts])
    rows = [
        [
            of_window(x[:, :, y][:, :, :, z].reshape(*x.shape[:2], len(y) * len(z)), a * b)
            for z, b in zip(places[1], inside[1], strict=True)
        ]
        for y, a in zip(places[0], inside[0], strict=True)
    ]
    return np.array(rows).transpose(2, 3, 0, 1)


@CASES
@given(
    w=windows(dilated=True), n=st.integers(1, 3), c=st.sampled_from([1, 3, 15, 16, 17, 40, 64, 65, 130]), dtype=INT8,
    layout=LAYOUTS, seed=st.integers(0, 2**31),
)  # fmt: skip
def test_int8_max_pool2d(w, n, c, dtype, layout, seed) -> None:
    a = integers((n, c, *w["size"]), dtype, generator(seed))
    y = ops.int8_max_pool2d(laid_out(a, layout), **{k: v for k, v in w.items() if k != "size"})
    assert_channels_last(y)
    least = torch.iinfo(dtype).min
    oracle.equal(y, walk(a.numpy(), w, lambda pixels, _: pixels.max(-1, initial=least)))


@CASES
@given(
    w=windows(dilated=False), n=st.integers(1, 3), c=st.sampled_from([1, 3, 16, 17, 40, 64, 65, 130]), dtype=INT8,
    layout=LAYOUTS, include=st.booleans(), out=OUTPUTS, z=st.integers(0, 255), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_int8_avg_pool2d(w, n, c, dtype, layout, include, out, z, seed) -> None:
    g = generator(seed)
    a, scale = integers((n, c, *w["size"]), dtype, g), torch.rand(1, generator=g) + 0.01
    zero_point = integers((1,), dtype, g).to(torch.int32)
    arguments, expected_out = output_arguments(out, 73.0, z)
    y = ops.int8_avg_pool2d(
        laid_out(a, layout), scale, zero_point, **{k: v for k, v in w.items() if k != "size"},
        count_include_pad=include, **arguments,
    )  # fmt: skip
    assert_channels_last(y)
    real = a.numpy().astype(np.int64) - zero_point.numpy()
    one = np.float32(1)

    def average(pixels: np.ndarray, padded: int) -> np.ndarray:
        factor = scale.numpy() * (one / np.float32(padded if include else pixels.shape[-1]))
        return oracle.finish(
            pixels.sum(-1), np.zeros(1, np.int64), np.zeros(1), factor, np.ones(1, np.float32), None, None, "none",
            expected_out,
        )  # fmt: skip

    oracle.equal(y, walk(real, w, average))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
@pytest.mark.parametrize("channels", [1, 64, 100, 256])
def test_the_whole_image_is_the_default_window(dtype: torch.dtype, channels: int) -> None:
    a, zero_point = integers((2, channels, 7, 5), dtype, generator(channels)), torch.tensor([9], dtype=torch.int32)
    y = ops.int8_avg_pool2d(a, torch.tensor([0.25]), zero_point)
    expected = ((a.double() - 9) * 0.25).mean((2, 3), keepdim=True)
    torch.testing.assert_close(y.double(), expected, rtol=1e-6, atol=1e-6)


def test_results_are_those_of_torch() -> None:
    a = integers((2, 20, 9, 8), torch.uint8, generator(0))
    for kernel, stride, padding, ceil_mode in ((3, 2, 1, False), (3, 2, 0, True), (2, 2, 0, False), (3, 3, 1, True)):
        pairs = (kernel, kernel), (stride, stride), (padding, padding)
        y = ops.int8_max_pool2d(a, *pairs, ceil_mode=ceil_mode)
        assert torch.equal(y.float(), F.max_pool2d(a.float(), kernel, stride, padding, ceil_mode=ceil_mode))
        for include in (False, True):
            y = ops.int8_avg_pool2d(a, torch.ones(1), None, *pairs, ceil_mode, include)
            expected = F.avg_pool2d(a.double(), kernel, stride, padding, ceil_mode, include)
            torch.testing.assert_close(y.double(), expected, rtol=1e-6, atol=1e-6)


def test_threads_agree(threads: None) -> None:
    a = integers((5, 70, 33, 31), torch.int8, generator(1))
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        pooled = ops.int8_max_pool2d(a, (3, 3), (2, 2), (1, 1))
        results.append(
            (pooled, ops.int8_avg_pool2d(a, torch.ones(1)), ops.int8_avg_pool2d(a, torch.ones(1), None, (3, 3)))
        )
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_empty_tensors() -> None:
    for shape in ((0, 8, 6, 6), (2, 0, 6, 6)):
        a = torch.zeros(shape, dtype=torch.uint8)
        assert ops.int8_max_pool2d(a, (2, 2)).shape == (*shape[:2], 3, 3)
        assert ops.int8_avg_pool2d(a, torch.ones(1)).shape == (*shape[:2], 1, 1)


A = torch.zeros(2, 8, 6, 6, dtype=torch.uint8)
ONE, SHIFT = torch.ones(1), torch.zeros(1, dtype=torch.int32)
OPS = torch.ops.torchaccel
BAD: list[tuple[Callable[[], Tensor], str]] = [
    (lambda: ops.int8_max_pool2d(A.float(), (2, 2)), "int8_max_pool2d: a is torch.float32, accepted are"),
    (lambda: ops.int8_max_pool2d(A[0], (2, 2)), r"a has shape \(8, 6, 6\), accepted is \[N, C, H, W\]"),
    (lambda: ops.int8_max_pool2d(A, (2,)), r"kernel_size is \(2,\), accepted are two integers of at least 1"),
    (lambda: ops.int8_max_pool2d(A, (2, 2), (0, 1)), r"stride is \(0, 1\), accepted are two integers of at least 1"),
    (lambda: ops.int8_max_pool2d(A, (2, 2), dilation=(0, 1)), r"dilation is \(0, 1\)"),
    (lambda: ops.int8_max_pool2d(A, (3, 3), padding=(2, 1)), r"padding is \(2, 1\), accepted is at most half"),
    (lambda: ops.int8_max_pool2d(A, (7, 2)), r"a window of \(7, 2\) with dilation \(1, 1\) does not fit .*\(6, 6\)"),
    (lambda: ops.int8_avg_pool2d(A, torch.ones(2)), r"int8_avg_pool2d: scale_a has shape \(2,\), accepted is \(1,\)"),
    (lambda: ops.int8_avg_pool2d(A, ONE, torch.zeros(8, dtype=torch.int32)), r"zero_point has shape \(8,\)"),
    (lambda: ops.int8_avg_pool2d(A, ONE, out_dtype=torch.int8), "out_dtype is torch.int8 with no scale_out"),
    (lambda: ops.int8_avg_pool2d(A, ONE, scale_out=ONE), "out_dtype is torch.float32 with a scale_out"),
    (lambda: ops.int8_avg_pool2d(A, ONE, out_dtype=torch.float64), "out_dtype is torch.float64, accepted are"),
    (lambda: ops.int8_avg_pool2d(A, ONE, out_dtype=torch.int8, scale_out=-ONE), "scale_out is -1.0, accepted"),
    (lambda: ops.int8_avg_pool2d(A, ONE, SHIFT, (8, 8), padding=(1, 1), stride=(9, 0)), r"stride is \(9, 0\)"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


PAIR, NO = [2, 2], [0, 0]
DIRECT: list[tuple[Callable[[], Tensor], str]] = [
    (lambda: OPS.int8_max_pool2d(A.float(), PAIR, PAIR, NO, [1, 1], False), "a is torch.float32"),
    (lambda: OPS.int8_max_pool2d(A[0], PAIR, PAIR, NO, [1, 1], False), "a has shape"),
    (lambda: OPS.int8_max_pool2d(A, [2], PAIR, NO, [1, 1], False), "kernel_size does not hold"),
    (lambda: OPS.int8_max_pool2d(A, PAIR, [2, 0], NO, [1, 1], False), "stride does not hold"),
    (lambda: OPS.int8_max_pool2d(A, PAIR, PAIR, [2, 0], [1, 1], False), "padding is"),
    (lambda: OPS.int8_max_pool2d(A, PAIR, PAIR, NO, [7, 1], False), "does not fit an input of"),
    (lambda: OPS.int8_avg_pool2d(A, ONE, None, [1 << 20, 1 << 20], PAIR, [1 << 19, 1 << 19], False, True,
                                 torch.float32, None, None), "accepted are at most 8421504 pixels"),
    (lambda: OPS.int8_avg_pool2d(A, ONE.half(), None, PAIR, PAIR, NO, False, True, torch.float32, None, None),
     "scale_a is torch.float16"),
    (lambda: OPS.int8_avg_pool2d(A, ONE, None, PAIR, PAIR, NO, False, True, torch.int8, None, None), "no scale_out"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), DIRECT)
def test_direct_calls_are_checked(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        call()
