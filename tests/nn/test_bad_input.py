"""Wrong arguments, inputs, layers and checkpoints: each gets an error that says what was given and what is accepted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.nn.cases import ALL, CONV, make
from torchaccel.nn import InputRange, Int8Conv2d, Int8Linear, SparseConv2d, SparseInt8Conv2d


@pytest.mark.parametrize("kind", CONV)
def test_input_with_another_channel_count(kind: str) -> None:
    layer = make(kind).layer
    for shape in ((2, 20, 7, 9), (16, 7, 9)):
        with pytest.raises(ValueError, match=r"x has shape .*accepted is \[N, 16, H, W\]"):
            layer(torch.zeros(shape))


@pytest.mark.parametrize("kind", ALL)
def test_wrong_dtype(kind: str) -> None:
    case = make(kind)
    for dtype in (torch.float64, torch.int32):
        with pytest.raises(ValueError, match=f"{dtype}, accepted"):
            case.layer(case.x.to(dtype))


def test_linear_depth() -> None:
    with pytest.raises(ValueError, match="a has K=41, b has K=40"):
        make("linear static u8").layer(torch.zeros(2, 41))


def test_another_int8_type_than_the_static_one() -> None:
    layer = make("conv static u8").layer
    with pytest.raises(ValueError, match=r"x is torch.int8, accepted are torch.uint8"):
        layer(torch.zeros(1, 16, 7, 9, dtype=torch.int8))
    with pytest.raises(ValueError, match="quantized dynamically"):
        make("conv dynamic").layer(torch.zeros(1, 16, 7, 9, dtype=torch.uint8))


def test_wrong_device() -> None:
    case = make("conv static u8")
    with pytest.raises(ValueError, match="meta"):
        case.layer(case.x.to("meta"))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"activation": "tanh"}, "activation is 'tanh'"),
        ({"input": "sometimes"}, "input is 'sometimes', accepted are static, dynamic"),
        ({"input_dtype": "int4"}, "input_dtype is 'int4'"),
        ({"output_dtype": "float64"}, "output_dtype is 'float64'"),
        ({"groups": 3}, "groups is 3"),
        ({"stride": 0}, "stride is 0"),
        ({"padding": (1, 2, 3)}, "padding is"),
        ({"kernel_size": 100, "in_channels": 1000}, "K=2500000 could overflow int32"),
    ],
)
def test_constructor_arguments(change: dict, match: str) -> None:
    arguments = {"in_channels": 16, "out_channels": 32, "kernel_size": 3, "groups": 4} | change
    with pytest.raises(ValueError, match=match):
        Int8Conv2d(**arguments)


def test_sparse_constructor_arguments() -> None:
    for cls in (SparseInt8Conv2d, SparseConv2d):
        with pytest.raises(ValueError, match=r"pattern is '3x3', accepted are unstructured, 1x4, .*tile"):
            cls(16, 32, 3, pattern="3x3")
        with pytest.raises(ValueError, match="divisible by 64 and input channels divisible by 64, given 64 and 32"):
            cls(32, 64, 3, pattern="tile")
    with pytest.raises(ValueError, match="blocks is 1153, accepted are 0 to 1152"):
        SparseInt8Conv2d(16, 32, 3, blocks=1153)
    with pytest.raises(ValueError, match="1x4 needs input channels divisible by 4, given 32 and 18"):
        SparseInt8Conv2d(18, 32, 3)


@pytest.mark.parametrize("cls", [Int8Conv2d, SparseInt8Conv2d, SparseConv2d])
def test_convolutions_that_cannot_be_converted(cls: type) -> None:
    with pytest.raises(ValueError, match="padding_mode is 'reflect', accepted is 'zeros'"):
        cls.from_float(nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"))
    with pytest.raises(ValueError, match="pads the two sides differently"):
        cls.from_float(nn.Conv2d(16, 16, 2, padding="same"))
    if cls is not Int8Conv2d:
        with pytest.raises(ValueError, match="groups is 2, accepted is 1"):
            cls.from_float(nn.Conv2d(16, 16, 3, groups=2))


def test_layers_too_deep_or_not_finite() -> None:
    with pytest.raises(ValueError, match="K=70000 could overflow int32"):
        Int8Linear.from_float(nn.Linear(70_000, 2), InputRange(1.0))
    assert Int8Linear.from_float(nn.Linear(70_000, 2)).input_dtype == torch.int8, "int8 allows twice the depth"
    linear = nn.Linear(4, 4)
    with torch.no_grad():
        linear.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="weight holds NaN"):
        Int8Linear.from_float(linear)


@pytest.mark.parametrize("kind", ["sparse int8 1x4", "sparse float"])
@pytest.mark.parametrize(
    ("name", "index", "value", "match"),
    [
        ("columns", 0, 10_000, "columns reach from .* accepted are 0 to 23"),
        ("columns", 0, -1, "columns reach from -1"),
        ("row_offsets", 1, 10_000, "row_offsets must rise"),
        ("row_offsets", 0, 1, "row_offsets must rise"),
    ],
)
def test_indices_out_of_range_are_not_loaded(kind: str, name: str, index: int, value: int, match: str) -> None:
    layer = make(kind).layer
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    state = {k: v.clone() for k, v in before.items()}
    state[name][index] = value
    with pytest.raises(RuntimeError, match=match):
        layer.load_state_dict(state)
    for assign in (False, True):
        with torch.device("meta"):
            empty = type(layer)(**layer.config())
        with pytest.raises(RuntimeError, match=match):
            empty.load_state_dict(state, assign=assign)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items()), "the layer is as it was"


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("scale", float("inf"), "scale holds NaN or an infinity"),
        ("bias", float("nan"), "bias holds NaN"),
        ("input_scale", 0.0, "input_scale is .* accepted is a number above 0"),
        ("input_scale", float("nan"), "input_scale holds NaN"),
    ],
)
def test_scales_that_are_no_scales_are_not_loaded(name: str, value: float, match: str) -> None:
    layer = make("conv static u8").layer
    state = {k: v.clone() for k, v in layer.state_dict().items()}
    state[name][0] = value
    with pytest.raises(RuntimeError, match=match):
        layer.load_state_dict(state)


def test_weights_of_another_dtype_are_not_loaded() -> None:
    layer = make("conv static u8").layer
    state = layer.state_dict()
    state["weight"] = state["weight"].float()
    with pytest.raises(RuntimeError, match=r"weight is torch.float32, accepted is torch.int8"):
        layer.load_state_dict(state)
