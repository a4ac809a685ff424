"""layer_norm_quantize_int8 and rms_norm_quantize_int8: the reference against float64, its shapes, views and errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from torchaccel import ops
from torchaccel.ops import norm_quantize

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
INT8 = (torch.int8, torch.uint8)
INF, NAN = float("inf"), float("nan")


def rand(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3 + 1).to(dtype)


def normalize(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, centred: bool) -> Tensor:
    """In float64, by PyTorch."""
    x, weight, bias = (None if t is None else t.double() for t in (x, weight, bias))
    if centred:
        return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def quantized(x, weight, bias, eps, centred, **given):
    if centred:
        return ops.layer_norm_quantize_int8(x, weight, bias, eps, **given)
    return ops.rms_norm_quantize_int8(x, weight, eps, **given)


@pytest.mark.parametrize("dtype", INT8)
@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("centred", [True, False])
def test_against_float64(centred: bool, source: torch.dtype, dtype: torch.dtype) -> None:
    for k in (1, 3, 64, 1000):
        x = rand(5, 2, k, dtype=source, seed=k)
        for eps, affine in ((1e-5, True), (0.5, False)):
            weight = rand(k, dtype=source, seed=1) if affine else None
            bias = rand(k, dtype=source, seed=2) if affine and centred else None
            exact = normalize(x, weight, bias, eps, centred)

            scale, zero_point = torch.tensor([0.05]), torch.tensor([17], dtype=torch.int32)
            q, *rest = quantized(x, weight, bias, eps, centred, scale=scale, zero_point=zero_point, dtype=dtype)
            info = torch.iinfo(dtype)
            wanted = (exact / scale.double()).round().add(17).clamp(info.min, info.max)
            assert q.dtype == dtype and q.shape == x.shape and q.is_contiguous()
            assert rest[0] is scale and rest[1] is zero_point
            assert (q.double() - wanted).abs().max() <= 1

            q, scale, zero_point = quantized(x, weight, bias, eps, centred, dtype=dtype)
            assert scale.shape == zero_point.shape == (10,) and zero_point.dtype == torch.int32
            back = (q.reshape(10, k).double() - zero_point[:, None]) * scale[:, None].double()
            error = (back - exact.reshape(10, k)).abs()
            assert (error <= 0.51 * scale[:, None] + 1e-5).all()


def test_rows_are_quantized_as_quantize_int8_dynamic_does() -> None:
    x, weight, bias = rand(4, 30), rand(30, seed=1), rand(30, seed=2)
    y = norm_quantize._normalized(x, weight, bias, 1e-5, True)
    for dtype in INT8:
        wanted = ops.quantize_int8_dynamic(y, dtype)
        for one, other in zip(ops.layer_norm_quantize_int8(x, weight, bias, dtype=dtype), wanted, strict=True):
            assert torch.equal(one, other)


def test_views_and_empty_shapes() -> None:
    x = rand(3, 4, 30)
    for view in (x, x[:, :, 1:20], x.transpose(0, 2), x[0, 0], x[:0], x[:, :0]):
        for given in ({}, {"scale": torch.tensor([0.1])}):
            got = ops.layer_norm_quantize_int8(view, **given)
            wanted = ops.layer_norm_quantize_int8(view.contiguous(), **given)
            assert got[0].is_contiguous() and torch.equal(got[0], wanted[0]) and torch.equal(got[1], wanted[1])
    q, scale, _ = ops.layer_norm_quantize_int8(x[:, :, :0])
    assert q.shape == (3, 4, 0) and scale.shape == (12,)


@pytest.mark.parametrize("dtype", INT8)
@pytest.mark.parametrize("centred", [True, False])
def test_special_values(centred: bool, dtype: torch.dtype) -> None:
    x = rand(5, 32)
    x[1, 7], x[2, 7], x[3, 7], x[4] = NAN, INF, -INF, 0.0
    q, scale, zero_point = quantized(x, None, None, 1e-5, centred, dtype=dtype)
    assert scale[1:4].isnan().all() and scale[[0, 4]].isfinite().all()
    assert (q[1:].int() == 0).all() and (zero_point[1:] == 0).all()
    shift = torch.tensor([9], dtype=torch.int32)
    q, *_ = quantized(x, None, None, 1e-5, centred, scale=torch.tensor([0.1]), zero_point=shift, dtype=dtype)
    assert (q[1:] == 9).all() and not (q[0] == 9).all()


def test_the_result_feeds_int8_linear() -> None:
    x, b = rand(6, 64), torch.randint(-127, 128, (10, 64), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    step = torch.full((10,), 0.01)
    exact = F.linear(normalize(x, None, None, 1e-5, True), b.double() * 0.01)
    for given in ({}, {"scale": torch.tensor([0.03])}, {"dtype": torch.uint8}):
        q, scale, zero_point = ops.layer_norm_quantize_int8(x, **given)
        y = ops.int8_linear(q, b, scale, step, zero_point)
        assert (y - exact).abs().max() < 0.02 * exact.abs().max()


Z = torch.zeros(1, dtype=torch.int32)
BAD = [
    ({"x": torch.ones(3, dtype=torch.float64)}, "x is torch.float64"),
    ({"x": torch.tensor(1.0)}, r"x has no dimensions, accepted is \[..., K\]"),
    ({"weight": torch.ones(7)}, r"weight has shape \(7,\), accepted is \(8,\)"),
    ({"weight": torch.ones(8).half()}, "weight is torch.float16, accepted are torch.float32"),
    ({"weight": torch.ones(8, device="meta")}, "weight is on meta"),
    ({"eps": -1.0}, "eps is -1.0"),
    ({"eps": NAN}, "eps is nan"),
    ({"dtype": torch.int32}, "dtype is torch.int32"),
    ({"scale": torch.ones(2)}, "scale has 2 elements"),
    ({"scale": torch.tensor([0.0])}, "scale is 0.0"),
    ({"scale": torch.ones(1).double()}, "scale is torch.float64"),
    ({"zero_point": Z}, "zero_point is given without scale"),
    ({"scale": torch.ones(1), "zero_point": Z.long()}, "zero_point is torch.int64"),
]


@pytest.mark.parametrize(("changed", "says"), BAD)
def test_bad_input(changed: dict, says: str) -> None:
    given = {"x": torch.ones(3, 8)} | changed
    with pytest.raises(ValueError, match=f"^layer_norm_quantize_int8: .*{says}"):
        ops.layer_norm_quantize_int8(**given)
    with pytest.raises(ValueError, match=f"^rms_norm_quantize_int8: .*{says}"):
        ops.rms_norm_quantize_int8(**given)


def test_a_bias_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^layer_norm_quantize_int8: bias has shape \(9,\), accepted is \(8,\)"):
        ops.layer_norm_quantize_int8(torch.ones(3, 8), None, torch.ones(9))
