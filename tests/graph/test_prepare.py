"""Tracing, folding and fusing leave the numbers as they are, and the layers in their strongest form."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models import Branching, SmallNet, settled
from torchaccel.graph.prepare import prepare
from torchaccel.nn.dense import DenseConv2d, DenseLinear


def test_a_resnet_becomes_layers_only() -> None:
    model, x = settled(SmallNet()), torch.randn(4, 3, 16, 16)
    prepared = prepare(copy.deepcopy(model), (x,))
    with torch.no_grad():
        torch.testing.assert_close(prepared.dense(x), model(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(prepared.dense(x[:1]), model(x[:1]), rtol=1e-4, atol=1e-4)
    assert prepared.note is None
    kinds = {type(prepared.dense.get_submodule(name)) for name in prepared.names}
    assert kinds == {DenseConv2d, DenseLinear}
    leaves = [m for m in prepared.dense.modules() if not list(m.children())]
    assert not any(isinstance(m, nn.BatchNorm2d | nn.ReLU | nn.Dropout) for m in leaves)
    functions = [n.target for n in prepared.dense.graph.nodes if n.op == "call_function"]
    assert functions == [torch.flatten], "the residual addition should be fused"
    activations = {name: prepared.dense.get_submodule(name).activation for name in prepared.names}
    assert activations["block1.conv1"] == activations["block1.conv2"] == "relu"
    assert activations["head"] == activations["block2.shortcut"] == "none"


def test_the_model_given_is_not_touched() -> None:
    model = settled(SmallNet())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prepare(copy.deepcopy(model), (torch.randn(2, 3, 16, 16),))
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())


class _Odd(nn.Module):
    """What must not be fused: a broadcasting sum, a value read twice, a layer called twice, a BatchNorm shared."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.twice = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.gate, self.norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        z = self.b(F.relu(y)) + y
        z = z + self.gate(z.mean((2, 3), keepdim=True))
        z = self.norm(self.twice(self.twice(z)))
        return F.gelu(self.norm(z)) + F.silu(z) + 1.0


def test_what_cannot_be_fused_is_left() -> None:
    model = settled(_Odd(), (4, 3, 8, 8))
    x = torch.randn(2, 3, 8, 8)
    prepared = prepare(copy.deepcopy(model), (x,))
    with torch.no_grad():
        torch.testing.assert_close(prepared.dense(x), model(x), rtol=1e-4, atol=1e-4)
    assert "twice" not in prepared.names
    assert prepared.dense.get_submodule("a").activation == "none"


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), nn.GELU(), nn.SiLU(), nn.GELU(approximate="tanh")])
def test_activations(activation: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), activation, nn.Flatten(), nn.Linear(8 * 16, 8), activation).eval()
    x = torch.randn(3, 4, 6, 6)
    prepared = prepare(copy.deepcopy(model), (x,))
    with torch.no_grad():
        torch.testing.assert_close(prepared.dense(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [nn.Linear(16, 24), nn.Conv2d(16, 24, 3, padding=1)])
@pytest.mark.parametrize("activation", ["none", "relu", "gelu", "silu"])
@pytest.mark.parametrize("residual", [False, True])
def test_dense_layers_are_packed_whatever_their_activation(kind: nn.Module, activation: str, residual: bool) -> None:
    linear = isinstance(kind, nn.Linear)
    layer = DenseLinear.from_float(kind) if linear else DenseConv2d.from_float(kind)
    layer.fuse_activation(activation)
    x = torch.randn(5, 16) if linear else torch.randn(2, 16, 6, 6)
    added = torch.randn(5, 24) if linear else torch.randn(2, 24, 6, 6)
    functions = {"none": lambda y: y, "relu": torch.relu, "gelu": F.gelu, "silu": F.silu}
    with torch.no_grad():
        expected = functions[activation](kind(x) + added if residual else kind(x))
        torch.testing.assert_close(layer(x, added) if residual else layer(x), expected, rtol=1e-5, atol=1e-5)
        assert residual or layer._packed is not None or not torch.backends.mkldnn.is_available()


def test_an_untraceable_model_is_taken_layer_by_layer_and_said_so() -> None:
    model, x = Branching().eval(), torch.randn(2, 3, 8, 8)
    prepared = prepare(copy.deepcopy(model), (x,))
    assert prepared.note is not None and "not traced" in prepared.note
    assert prepared.names == ["a", "b"]
    with torch.no_grad():
        torch.testing.assert_close(prepared.dense(x), model(x))


def test_dense_layers_stay_trainable_and_follow_their_weights() -> None:
    layer = DenseConv2d.from_float(nn.Conv2d(8, 8, 3))
    layer.fuse_activation("relu")
    x = torch.randn(2, 8, 6, 6)
    with torch.no_grad():
        layer(x)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    layer.load_state_dict({name: torch.ones_like(tensor) for name, tensor in layer.state_dict().items()})
    with torch.no_grad():
        torch.testing.assert_close(layer(x), torch.relu(F.conv2d(x, layer.weight, layer.bias)))
