"""Each layer against the float layer that it was made from, and its state through copies, files and devices."""

from __future__ import annotations

import copy
import io
import json

import pytest
import torch
from torch import nn

from tests.nn.cases import ALL, CONV, error, make
from torchaccel.nn import InputRange, Int8Conv2d, Int8Linear
from torchaccel.ops import blocks


@pytest.mark.parametrize("kind", ALL)
def test_close_to_the_float_layer(kind: str) -> None:
    case = make(kind)
    # 8 bits over about +-4 sigma on both operands: about 1%.
    assert error(case.layer(case.x), case.reference(case.x)) < (1e-6 if kind == "sparse float" else 0.015)


@pytest.mark.parametrize("kind", [k for k in ALL if "dynamic" not in k])
def test_output_is_what_dequantized_operands_give(kind: str) -> None:
    """Nothing is lost but the rounding of the operands: the output matches a float64 layer on the same integers."""
    case = make(kind)
    layer, x = case.layer, case.x
    plain = layer.to_float().double()
    given = layer.input_range() if hasattr(layer, "input_range") else None
    if given is None:
        quantized = x.double()
    else:
        info = torch.iinfo(given.dtype)
        steps = torch.round(x / given.scale) + given.zero_point
        quantized = (steps.clamp(info.min, info.max).double() - given.zero_point) * given.scale
    assert error(layer(x).double(), plain(quantized)) < 2e-6


@pytest.mark.parametrize("kind", ALL)
def test_config_and_state_dict_make_the_same_layer(kind: str) -> None:
    case = make(kind)
    layer, y = case.layer, case.layer(case.x)
    config = json.loads(json.dumps(layer.config()))
    assert config == layer.config()
    empty = type(layer)(**config)
    assert not torch.equal(empty(case.x), y)
    empty.load_state_dict(layer.state_dict())
    with torch.device("meta"):
        assigned = type(layer)(**config)
    assigned.load_state_dict(layer.state_dict(), assign=True)
    for other in (empty, assigned, copy.deepcopy(layer)):
        assert torch.equal(other(case.x), y)
        assert other.config() == layer.config()
        assert {k: v.dtype for k, v in other.state_dict().items()} == {
            k: v.dtype for k, v in layer.state_dict().items()
        }


@pytest.mark.parametrize("kind", ALL)
def test_pickle_leaves_out_what_is_derived(kind: str) -> None:
    case = make(kind)
    for name in case.layer.derived:
        assert name not in case.layer.state_dict()
        assert case.layer.__getstate__()["_buffers"][name] is None
        setattr(case.layer, name, None)
    file = io.BytesIO()
    torch.save(case.layer, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(case.x), make(kind).layer(case.x))
    if "colsum" in loaded.derived:
        assert loaded.colsum is not None, "derived again on unpickling"


@pytest.mark.parametrize("kind", ALL)
def test_moves_between_devices(kind: str) -> None:
    case = make(kind)
    moved = copy.deepcopy(case.layer).to("meta")
    assert all(getattr(moved, name) is None for name in moved.derived)
    moved.to_empty(device="cpu").load_state_dict(case.layer.state_dict())
    assert torch.equal(moved(case.x), case.layer(case.x))
    assert all(getattr(moved, name) is None for name in moved.derived) == all(
        getattr(case.layer, name) is None for name in moved.derived
    )


@pytest.mark.parametrize("kind", ["linear static u8", "conv static u8", "sparse int8 1x4"])
def test_loading_other_weights_derives_again(kind: str) -> None:
    """Stale sums would shift every output by the zero point."""
    case = make(kind)
    state = case.layer.state_dict()
    for name in ("weight", "values"):
        if name in state:
            state[name] = -state[name]
    expected = 2 * case.layer.bias.view(-1, *[1] * (case.layer(case.x).dim() - 2 if kind[0] != "l" else 0))
    before = case.layer(case.x)
    case.layer.load_state_dict(state)
    torch.testing.assert_close(case.layer(case.x) + before, expected.expand_as(before), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [k for k in ALL if k != "sparse float"])
def test_half_keeps_scales_and_follows_the_input(kind: str) -> None:
    case = make(kind)
    expected = case.layer(case.x)
    case.layer.half()
    assert case.layer.scale.dtype == torch.float32
    assert torch.equal(case.layer(case.x), expected)
    y = case.layer(case.x.half())
    assert y.dtype == torch.float16
    assert error(y.float(), expected) < 0.01


@pytest.mark.parametrize("kind", CONV)
def test_any_strides_in_channels_last_out(kind: str) -> None:
    case = make(kind)
    expected = case.layer(case.x)
    if kind == "sparse float":  # gives back the layout that it gets
        assert expected.is_contiguous()
    nhwc = case.layer(case.x.contiguous(memory_format=torch.channels_last))
    assert nhwc.is_contiguous(memory_format=torch.channels_last)
    wide = torch.zeros(2, 16, 7, 18)
    wide[..., ::2] = case.x
    for x in (case.x.contiguous(memory_format=torch.channels_last), wide[..., ::2]):
        torch.testing.assert_close(case.layer(x), expected, rtol=1e-6, atol=1e-6)


def test_linear_takes_any_strides() -> None:
    case = make("linear static u8")
    x = case.x.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(case.layer(x), case.layer(case.x))


@pytest.mark.parametrize("kind", ALL)
def test_empty_batch(kind: str) -> None:
    case = make(kind)
    assert case.layer(case.x[:0]).shape == case.reference(case.x[:0]).shape


def test_sparse_equals_dense_to_the_bit() -> None:
    case = make("sparse int8 4x4")
    dense = Int8Conv2d.from_float(case.reference, case.layer.input_range())
    assert torch.equal(case.layer(case.x), dense(case.x))
    sparse = case.layer
    assert 0.4 < sparse.sparsity < 0.8
    q = blocks.from_blocks(sparse.values, sparse.columns, sparse.row_offsets, 16, sparse.kernel_size)
    assert torch.equal(q, dense.weight)


def test_int8_input_is_taken_as_quantized() -> None:
    case = make("conv static u8")
    given = case.layer.input_range()
    q = (torch.round(case.x / given.scale) + given.zero_point).clamp(0, 255).to(torch.uint8)
    torch.testing.assert_close(case.layer(q), case.layer(case.x), rtol=0, atol=0.05)
    assert case.layer(q).dtype == torch.float32


def test_each_image_has_its_own_scale() -> None:
    """A loud image in the batch leaves the quiet one as exact as it is alone."""
    case = make("conv dynamic")
    loud = torch.cat([case.x[:1], case.x[1:] * 1000])
    assert torch.equal(case.layer(loud)[:1], case.layer(case.x[:1]))


@pytest.mark.parametrize(("kernel", "dilation", "padding"), [(3, 1, (1, 1)), ((3, 5), 2, (2, 4)), (1, 1, (0, 0))])
def test_same_padding_becomes_numbers(kernel: int, dilation: int, padding: tuple[int, int]) -> None:
    conv = nn.Conv2d(8, 8, kernel, padding="same", dilation=dilation)
    layer = Int8Conv2d.from_float(conv)
    assert layer.padding == padding
    x = torch.randn(1, 8, 9, 9)
    assert error(layer(x), conv(x)) < 0.02


def test_channels_of_zeros_stay_zero() -> None:
    linear = nn.Linear(16, 4, bias=False)
    with torch.no_grad():
        linear.weight[1] = 0
        linear.weight[2] = 1e-40
    layer = Int8Linear.from_float(linear)
    assert torch.isfinite(layer.scale).all()
    assert layer.scale[1] == 1
    assert (layer(torch.randn(3, 16))[:, 1] == 0).all()


def test_weights_use_the_whole_range() -> None:
    layer = make("conv static u8").layer
    assert torch.equal(layer.weight.flatten(1).abs().amax(1), torch.full((32,), 127, dtype=torch.int8))


@pytest.mark.parametrize("kind", ALL)
def test_repr_tells_shape_and_kernel(kind: str) -> None:
    layer = make(kind).layer
    text = repr(layer)
    assert "kernel=native" in text or "kernel=reference" in text
    assert ("40, 24" if kind.startswith("linear") else "16, 32") in text
    assert ("sparsity=0." in text) == ("sparse" in kind)


def test_ranges_are_checked() -> None:
    for scale in (0.0, -1.0, float("nan"), float("inf"), 1e-60):
        with pytest.raises(ValueError, match="scale is"):
            InputRange(scale)
    with pytest.raises(ValueError, match="zero_point is 256, accepted are 0 to 255"):
        InputRange(1.0, 256)
    with pytest.raises(ValueError, match=r"dtype is torch.float32"):
        InputRange(1.0, 0, torch.float32)
