"""The surgery: each kind of layer loses the right slices, all or nothing, and a record says what is gone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.models import SmallNet
from torchaccel.compress.removal import (
    Kept,
    check_widths,
    in_words,
    narrow_,
    narrow_to_,
    record_of,
    set_record,
    silence_,
    widths_of,
)

OUT, INTO = torch.tensor([0, 2, 5]), torch.tensor([1, 3])
SYMMETRIC = torch.tensor([0, 2, 3, 5])  # of two groups of three


def layers() -> dict[str, tuple[nn.Module, Kept, dict[str, Tensor | None], dict[str, int]]]:
    """By kind: a layer, what it keeps, the tensors that it must have then, and the numbers."""
    torch.manual_seed(0)
    conv, linear, up = nn.Conv2d(4, 6, 3), nn.Linear(4, 6), nn.ConvTranspose2d(4, 6, 2, 2)
    depthwise, grouped, norm = nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 6, 1, groups=2), nn.BatchNorm2d(6)
    up_grouped, prelu = nn.ConvTranspose2d(6, 6, 2, groups=2), nn.PReLU(6)
    norm.running_mean.normal_(), norm.running_var.uniform_(), norm.weight.data.normal_(), prelu.weight.data.normal_()
    within = torch.tensor([0, 2])
    channels = {"in_channels": 2, "out_channels": 3}
    return {
        "conv": (conv, Kept(OUT, INTO), {"weight": conv.weight[OUT][:, INTO], "bias": conv.bias[OUT]}, channels),
        "outputs": (conv, Kept(OUT), {"weight": conv.weight[OUT]}, {"in_channels": 4, "out_channels": 3}),
        "inputs": (conv, Kept(None, INTO), {"weight": conv.weight[:, INTO], "bias": conv.bias}, {"out_channels": 6}),
        "linear": (
            linear, Kept(OUT, INTO), {"weight": linear.weight[OUT][:, INTO], "bias": linear.bias[OUT]},
            {"in_features": 2, "out_features": 3},
        ),
        "transposed": (up, Kept(OUT, INTO), {"weight": up.weight[INTO][:, OUT], "bias": up.bias[OUT]}, channels),
        "depthwise": (
            depthwise, Kept(OUT), {"weight": depthwise.weight[OUT], "bias": depthwise.bias[OUT]},
            {"in_channels": 3, "out_channels": 3, "groups": 3},
        ),
        "grouped": (
            grouped, Kept(SYMMETRIC, SYMMETRIC), {"weight": grouped.weight[SYMMETRIC][:, within]},
            {"in_channels": 4, "out_channels": 4, "groups": 2},
        ),
        "transposed grouped": (
            up_grouped, Kept(SYMMETRIC, SYMMETRIC), {"weight": up_grouped.weight[SYMMETRIC][:, within]},
            {"in_channels": 4, "out_channels": 4, "groups": 2},
        ),
        "norm": (
            norm, Kept(OUT),
            {name: getattr(norm, name)[OUT] for name in ("weight", "bias", "running_mean", "running_var")},
            {"num_features": 3},
        ),
        "bare norm": (
            nn.BatchNorm2d(6, affine=False, track_running_stats=False), Kept(OUT), {"weight": None}, {"num_features": 3}
        ),
        "prelu": (prelu, Kept(OUT), {"weight": prelu.weight[OUT]}, {"num_parameters": 3}),
    }  # fmt: skip


@pytest.mark.parametrize("kind", layers())
def test_each_kind_of_layer_loses_the_right_slices(kind: str) -> None:
    layer, kept, tensors, numbers = layers()[kind]
    narrow_(model := nn.Sequential(layer), {"0": kept})
    for name, expected in tensors.items():
        found = getattr(layer, name)
        assert found is expected is None or torch.equal(found, expected)
    assert {name: getattr(layer, name) for name in numbers} == numbers
    grouped = isinstance(layer, nn.modules.conv._ConvNd)
    x = torch.randn(2, layer.in_channels, 8, 8) if grouped else torch.randn(2, widths_of(layer).get("in", 3))
    model(x[:, :, None, None] if isinstance(layer, nn.BatchNorm2d) else x)


@pytest.mark.parametrize("kind", ["conv", "linear", "transposed", "grouped", "transposed grouped"])
def test_silent_channels_change_nothing_when_they_go(kind: str) -> None:
    layer, kept, _, _ = layers()[kind]
    model = nn.Sequential(layer)
    x = torch.randn(2, 4 if kept.into is INTO else 6, *(() if kind == "linear" else (4, 4)))
    silence_(silent := copy.deepcopy(model), {"0": kept})
    narrow_(model, {"0": kept})
    assert torch.allclose(model(x[:, kept.into]), silent(x)[:, kept.out], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "kept", "message"),
    [
        ("1", Kept(OUT), "'1': LayerNorm normalizes over channels"),
        ("2", Kept(OUT), "'2': channels are not taken out of Embedding"),
        ("3", Kept(None, OUT), "'3': a convolution with groups=2 must lose the same channels in each group"),
        ("3", Kept(None, torch.tensor([0, 1, 4, 5])), "'3': .* the same channels in each group"),
        ("0", Kept(torch.tensor([7])), "'0': .*index"),
    ],
)
def test_all_layers_change_or_none(name: str, kept: Kept, message: str) -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.LayerNorm(6), nn.Embedding(6, 6), nn.Conv2d(6, 6, 1, groups=2))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        narrow_(model, {"0": Kept(OUT), name: kept})
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in before.items()}
    assert model[0].out_channels == 6 and record_of(model) == {}


def test_a_record_makes_another_model_as_narrow() -> None:
    model = SmallNet()
    narrow_(
        model, {"stem.0": Kept(torch.arange(8)), "stem.1": Kept(torch.arange(8)), "head": Kept(None, torch.arange(9))}
    )
    narrow_(model, {"stem.0": Kept(torch.arange(4))})
    record = record_of(model)
    assert record == {"stem.0": {"out": [4, 32]}, "stem.1": {"out": [8, 32]}, "head": {"in": [9, 64]}}
    assert in_words({"out": [4, 32], "in": [2, 3]}) == "4 of 32 out, 2 of 3 in"
    with torch.device("meta"):
        other = SmallNet()
        narrow_to_(other, record)
    assert all(t.is_meta for t in other.parameters()) and record_of(other) == record
    assert {k: v.shape for k, v in other.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert record_of(copy.deepcopy(nn.Sequential(model))) == {f"0.{name}": sides for name, sides in record.items()}
    grouped = nn.Sequential(nn.Conv2d(8, 8, 1, groups=2))
    narrow_to_(grouped, {"0": {"out": [4, 8], "in": [4, 8]}})
    assert grouped[0].weight.shape == (4, 2, 1, 1)


def test_a_record_is_a_copy() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    set_record(model, {"0": {"out": [4, 8]}})
    record_of(model)["0"]["out"][0] = 3
    assert record_of(model) == {"0": {"out": [4, 8]}}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"gone": {"out": [4, 8]}}, "the model has no layer 'gone'"),
        ({"stem.0": {"out": [4, 31]}}, "'stem.0' has 32 output channels in the model, 31 before removal in the file"),
        ({"stem.1": {"in": [4, 32]}}, "'stem.1' has no input channels in the model, 32"),
        ({"pool": {"out": [4, 32]}}, "'pool' has no output channels"),
    ],
)
def test_a_record_of_another_model_is_refused(record: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        narrow_to_(SmallNet(), record)


@pytest.mark.parametrize(
    "widths",
    [[], {"a": []}, {"a": {"up": [1, 2]}}, {"a": {"out": 3}}, {"a": {"out": [3, 2]}}, {"a": {"out": [0, 2]}},
     {"a": {"in": [1.0, 2]}}, {"a": {"in": [True, 2]}}, {"a": {"in": [1, 2, 3]}}, {"a": {"in": None}}],
)  # fmt: skip
def test_what_is_no_record_is_refused(widths: object) -> None:
    with pytest.raises(ValueError, match=r"^channels"):
        check_widths(widths)
