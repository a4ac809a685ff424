"""Convolutions and linear layers called as functions become modules, where nothing else needs their weights."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchaccel as ta
from tests.models import settled
from torchaccel.graph.connect import assemble
from torchaccel.graph.prepare import prepare
from torchaccel.nn.dense import DenseConv2d, DenseLinear


class SamePadding(nn.Conv2d):
    """A convolution class as model zoos have them: padding by a module, the rest by a function."""

    def __init__(self, *args: object, pad: tuple[int, int, int, int], **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.pad = nn.ZeroPad2d(pad)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.pad(x), self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Zoo(nn.Module):
    """Symmetric and one-sided padding, a depthwise layer, and parameters at the root."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn1 = SamePadding(3, 16, 3, 2, bias=False, pad=(0, 1, 0, 1)), nn.BatchNorm2d(16)
        self.depthwise, self.bn2 = SamePadding(16, 16, 3, groups=16, pad=(1, 1, 1, 1)), nn.BatchNorm2d(16)
        self.act = nn.ReLU6()
        self.head = nn.Parameter(torch.randn(5, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn2(self.depthwise(self.act(self.bn1(self.stem(x))))))
        return F.linear(x.mean((2, 3)), self.head)


X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def test_a_zoos_convolutions_are_folded_fused_and_named() -> None:
    model = settled(Zoo(), tuple(X.shape))
    prepared = prepare(copy.deepcopy(model), (X,))
    assert prepared.note is None
    with torch.no_grad():
        torch.testing.assert_close(prepared.dense(X), model(X), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(prepared.dense(X[:1]), model(X[:1]), rtol=1e-4, atol=1e-5)
    layers = {name: prepared.dense.get_submodule(name) for name in prepared.names}
    assert [type(layer) for layer in layers.values()] == [DenseConv2d, DenseConv2d, DenseLinear]
    stem, depthwise = layers["stem.lifted"], layers["depthwise.lifted"]
    assert stem.activation == depthwise.activation == "relu6"
    assert depthwise.padding == (1, 1) and depthwise.groups == 16
    assert stem.padding == (1, 1) and stem.kernel_size == (4, 4), "its kernel begins with zeros"
    assert not any(isinstance(m, nn.ZeroPad2d) for m in prepared.dense.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in prepared.dense.modules())


@pytest.mark.parametrize(
    ("pad", "settings", "merged"),
    [
        ((1, 1, 2, 2), {}, {"padding": (2, 1), "kernel_size": (3, 3)}),
        ((0, 1, 2, 1), {}, {"padding": (2, 1), "kernel_size": (4, 4)}),
        ((2, 1, 1, 1), {"stride": 2, "padding": 1}, {"padding": (2, 3), "kernel_size": (3, 4)}),
        ((0, 1, 0, 1), {"stride": 2, "groups": 4}, {"padding": (1, 1), "kernel_size": (4, 4)}),
        ((1, 1, 1, 1), {"dilation": 2}, {"padding": (1, 1)}),
        ((0, 1, 0, 1), {"dilation": 2}, None),
        ((0, 2, 0, 0), {}, None),
        ((-1, 0, 0, 0), {}, None),
    ],
)
@pytest.mark.parametrize("size", [8, 9])
def test_padding_goes_into_the_convolution(pad: tuple, settings: dict, merged: dict | None, size: int) -> None:
    model, x = nn.Sequential(SamePadding(4, 8, 3, pad=pad, **settings)).eval(), torch.randn(2, 4, size, size)
    dense = prepare(copy.deepcopy(model), (x,)).dense
    with torch.no_grad():
        torch.testing.assert_close(dense(x), model(x), rtol=1e-4, atol=1e-5)
    assert any(isinstance(m, nn.ZeroPad2d) for m in dense.modules()) == (merged is None)
    layer = dense.get_submodule("0.lifted")
    assert {name: getattr(layer, name) for name in merged or {}} == (merged or {})


def test_the_lifted_model_reloads_to_the_bit(tmp_path: Path) -> None:
    dense = prepare(settled(Zoo(), tuple(X.shape)), (X,)).dense
    model = assemble(dense, {})
    ta.save(model, tmp_path / "zoo.safetensors")
    with torch.no_grad():
        assert torch.equal(ta.load(tmp_path / "zoo.safetensors", Zoo)(X), model(X))


class Entangled(nn.Module):
    """Weights that more than one place reads."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.twice = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        y = self.called(x) + F.conv2d(x, self.called.weight, padding=1)
        y = F.conv2d(F.conv2d(y, self.twice.weight, padding=1), self.twice.weight, padding="same")
        return F.conv2d(y, self.twice.weight * self.scale, padding=1)


def test_weights_that_others_read_are_left() -> None:
    model = Entangled().eval()
    prepared = prepare(copy.deepcopy(model), (X,))
    assert prepared.note is None and not any("lifted" in name for name in prepared.names)
    with torch.no_grad():
        torch.testing.assert_close(prepared.dense(X), model(X), rtol=1e-4, atol=1e-4)
