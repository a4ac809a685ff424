"""Pooling and addition modules against the float layers that they stand for, their state, settings and refusals."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.nn.cases import affine, error, symmetric
from torchaccel.nn import InputRange, Int8AdaptiveAvgPool2d, Int8Add, Int8AvgPool2d, Int8MaxPool2d
from torchaccel.ops import quantize_int8

torch.manual_seed(0)
X = torch.randn(2, 24, 9, 8)
U8, S8 = affine(X), symmetric(X)
PLAIN: dict[str, nn.Module] = {
    "max": nn.MaxPool2d(3, 2, 1),
    "max odd": nn.MaxPool2d((2, 3), (1, 2), (1, 0), (2, 1), ceil_mode=True),
    "average": nn.AvgPool2d(3, 2, 1),
    "average odd": nn.AvgPool2d((2, 4), (2, 1), (0, 2), True, False),
    "global": nn.AdaptiveAvgPool2d(1),
    "divides": nn.AdaptiveAvgPool2d((3, 4)),
    "overlaps": nn.AdaptiveAvgPool2d((4, None)),
}


def made(kind: str, given: InputRange = U8) -> nn.Module:
    plain = PLAIN[kind]
    if isinstance(plain, nn.MaxPool2d):
        return Int8MaxPool2d.from_float(plain)
    if isinstance(plain, nn.AvgPool2d):
        return Int8AvgPool2d.from_float(plain, given)
    assert isinstance(plain, nn.AdaptiveAvgPool2d)
    return Int8AdaptiveAvgPool2d.from_float(plain, given)


def quantized(x: Tensor, given: InputRange) -> Tensor:
    return quantize_int8(
        x, torch.tensor([given.scale]), torch.tensor([given.zero_point], dtype=torch.int32), given.dtype
    )


def real(q: Tensor, given: InputRange) -> Tensor:
    return (q.double() - given.zero_point) * given.scale


@pytest.mark.parametrize("given", [U8, S8])
@pytest.mark.parametrize("kind", PLAIN)
def test_int8_and_floats_are_pooled_as_the_float_layer_does(kind: str, given: InputRange) -> None:
    layer, plain, q = made(kind, given), PLAIN[kind], quantized(X, given)
    y = layer(q)
    if "max" in kind:
        assert y.dtype == given.dtype and torch.equal(layer(X), plain(X))
        y = real(y, given)
    else:
        assert y.dtype == torch.float32 and torch.equal(layer(X), y)
    assert error(y.double(), plain(real(q, given))) < 2e-7
    assert y.is_contiguous(memory_format=torch.channels_last) or kind == "overlaps"


@pytest.mark.parametrize("kind", [kind for kind in PLAIN if "max" not in kind])
def test_averages_may_be_int8(kind: str) -> None:
    layer = made(kind)
    y, given = layer(X), affine(PLAIN[kind](X))
    layer.set_output(given.scale, given.zero_point, given.dtype)  # type: ignore[operator]
    assert torch.equal(layer(X), quantized(y, given))
    layer.set_float()  # type: ignore[operator]
    assert torch.equal(layer(X), y)
    assert layer(X.half()).dtype == torch.float16


@pytest.mark.parametrize("kind", [*PLAIN, "add"])
def test_config_state_copies_and_pickles(kind: str) -> None:
    layer = Int8Add.from_ranges(U8, S8, "relu") if kind == "add" else made(kind)
    args = (X, X.flip(0)) if kind == "add" else (X,)
    if "max" not in kind:
        layer.set_output(0.03, 7, torch.uint8)  # type: ignore[operator]
    config = json.loads(json.dumps(layer.config()))  # type: ignore[operator]
    empty = type(layer)(**config)
    empty.load_state_dict(layer.state_dict())
    with torch.device("meta"):
        assigned = type(layer)(**config)
    assigned.load_state_dict(layer.state_dict(), assign=True)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    expected = layer(*args)
    for other in (empty, assigned, copy.deepcopy(layer), torch.load(file, weights_only=False), layer.half()):
        assert torch.equal(other(*args), expected) and other.config() == config
    moved = copy.deepcopy(layer).to("meta").to_empty(device="cpu")
    moved.load_state_dict(layer.state_dict())
    assert torch.equal(moved(*args), expected)
    assert repr(layer).count("kernel_size=") <= 1


@pytest.mark.parametrize("kind", PLAIN)
def test_back_to_float(kind: str) -> None:
    plain, back = PLAIN[kind], made(kind).to_float()  # type: ignore[operator]
    assert type(back) is type(plain) and torch.equal(back(X), plain(X))


def test_any_strides_and_empty_batches() -> None:
    for kind in PLAIN:
        layer, q = made(kind), quantized(X, U8)
        wide = torch.zeros(2, 24, 9, 16, dtype=torch.uint8)
        wide[..., ::2] = q
        for view in (q.contiguous(memory_format=torch.channels_last), wide[..., ::2]):
            assert torch.equal(layer(view), layer(q))
        assert layer(q[:0]).shape == PLAIN[kind](X[:0]).shape


@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
def test_addition(activation: str) -> None:
    layer, a, b = Int8Add.from_ranges(U8, S8, activation), X, X.flip(0).contiguous()
    first, second = quantized(a, U8), quantized(b, S8)
    function = {"none": lambda y: y, "relu": torch.relu, "gelu": F.gelu}[activation]
    y = layer(first, second)
    assert y.dtype == torch.float32 and torch.equal(layer(a, b), y)
    torch.testing.assert_close(y.double(), function(real(first, U8) + real(second, S8)), rtol=1e-5, atol=1e-5)
    given = affine(y)
    layer.set_output(given.scale, given.zero_point, given.dtype)
    assert torch.equal(layer(first, second), quantized(y, given))


def test_gradients_are_refused_where_they_would_be_wrong() -> None:
    x = X.clone().requires_grad_()
    for layer, args in ((made("average"), (x,)), (made("global"), (x,)), (Int8Add.from_ranges(U8, U8), (x, X))):
        with pytest.raises(RuntimeError, match="inference-only"):
            layer(*args).sum().backward()
    made("max")(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("kind", [*PLAIN, "add"])
def test_compile_without_graph_breaks(kind: str) -> None:
    layer = Int8Add.from_ranges(U8, U8) if kind == "add" else made(kind)
    q = quantized(X, U8)
    args = (q, q) if kind == "add" else (q,)
    assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(*args), layer(*args))


BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: Int8MaxPool2d(0), "Int8MaxPool2d: kernel_size is 0, accepted are one or two integers of at least 1"),
    (lambda: Int8AvgPool2d(2, padding=-1), "Int8AvgPool2d: padding is -1, accepted are"),
    (lambda: Int8AvgPool2d(2, input_dtype="float32"), "input_dtype is 'float32', accepted are uint8, int8"),
    (lambda: Int8AdaptiveAvgPool2d(0), "output_size is 0, accepted are one or two integers of at least 1, or None"),
    (lambda: Int8AdaptiveAvgPool2d((1, 2, 3)), r"output_size is \(1, 2, 3\), accepted are"),
    (lambda: Int8Add(activation="tanh"), "Int8Add: activation is 'tanh', accepted are"),
    (lambda: Int8Add(other_dtype="int32"), "other_dtype is 'int32', accepted are uint8, int8"),
    (lambda: Int8MaxPool2d.from_float(nn.MaxPool2d(2, return_indices=True)), "return_indices is True, accepted is F"),
    (lambda: Int8AvgPool2d.from_float(nn.AvgPool2d(2, divisor_override=3), U8), "divisor_override is 3, accepted is N"),
    (lambda: made("average")(X[0]), r"Int8AvgPool2d: x has shape \(24, 9, 8\), accepted is \[N, C, H, W\]"),
    (lambda: made("global")(quantized(X, S8)), "x is torch.int8, accepted are torch.uint8 and float types"),
    (lambda: made("max")(quantized(X, U8)[0]), r"int8_max_pool2d: a has shape \(24, 9, 8\)"),
    (lambda: Int8Add.from_ranges(U8, U8)(X, X[:1]), r"int8_add: b has shape \(1, 24, 9, 8\), accepted is \(2, 24"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_damaged_scales_are_refused() -> None:
    layer = made("global")
    state = layer.state_dict()
    state["input_scale"] = torch.tensor([-1.0])
    with pytest.raises(RuntimeError, match=r"input_scale is \[-1.0\], accepted is a number above 0"):
        layer.load_state_dict(state)
