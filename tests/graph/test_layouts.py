"""Activations of sparse float layers stay contiguous where these are the rule."""

import copy

import pytest
import torch
from torch import Tensor, nn

from torchaccel.graph.connect import assemble, disconnect
from torchaccel.graph.prepare import Prepared, prepare
from torchaccel.graph.trace import trace
from torchaccel.nn import SparseConv2d
from torchaccel.nn.contiguous import Contiguous


class Residual(nn.Module):
    """A stem, a block with a shortcut, and a layer after it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool = nn.Conv2d(3, 16, 3, padding=1), nn.MaxPool2d(2)
        self.a, self.b, self.short = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
        self.last = nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x).relu())
        return self.last((self.b(self.a(x).relu()) + self.short(x)).relu())


def all_sparse(model: nn.Module, x: Tensor) -> tuple[Prepared, dict[str, nn.Module]]:
    """The model pruned and prepared, and a sparse form for every convolution that has one."""
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        for layer in pruned.modules():
            if isinstance(layer, nn.Conv2d) and layer.groups == 1:
                layer.weight *= torch.rand(layer.weight.shape) < 0.3
    prepared = prepare(pruned, (x,))
    sparse = {}
    for name in prepared.names:
        layer = prepared.dense.get_submodule(name)
        if isinstance(layer, nn.Conv2d) and layer.groups == 1:
            sparse[name] = SparseConv2d.from_float(layer.to_float(), "unstructured")
            sparse[name].fuse_activation(layer.activation)
    return prepared, sparse


@pytest.fixture
def case() -> tuple[nn.Module, dict[str, nn.Module], Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, 12)
    prepared, sparse = all_sparse(Residual().eval(), x)
    del sparse["stem"]
    return prepared.dense, sparse, x


def layouts(model: nn.Module, names: tuple[str, ...], x: Tensor) -> dict[str, bool]:
    """Whether each layer's input is contiguous."""
    seen = {}
    for name in names:
        hook = lambda _, args, name=name: seen.__setitem__(name, all(a.is_contiguous() for a in args))  # noqa: E731
        model.get_submodule(name).register_forward_pre_hook(hook)
    with torch.no_grad():
        model(x)
    return seen


def copies(model: nn.Module) -> int:
    return sum(isinstance(module, Contiguous) for module in model.modules())


def test_a_chain_of_sparse_layers_is_copied_into_once(case) -> None:
    dense, sparse, x = case
    model = assemble(dense, sparse)
    assert copies(model) == 1
    torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-5)
    assert all(layouts(model, tuple(sparse), x).values())


def test_a_few_sparse_layers_take_what_dense_ones_hand_on(case) -> None:
    dense, sparse, x = case
    model = assemble(dense, {name: sparse[name] for name in ("a", "b")})
    assert copies(model) == 0
    torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-5)
    assert not any(layouts(model, ("a", "b"), x).values())


def test_max_pooling_needs_no_copy_of_its_own() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, 12).to(memory_format=torch.channels_last)
    prepared, sparse = all_sparse(Residual().eval(), x)
    model = assemble(prepared.dense, sparse)
    assert copies(model) == 1
    assert all(layouts(model, tuple(sparse), x).values())


def test_copies_go_when_a_model_is_prepared_again(case) -> None:
    dense, sparse, x = case
    model = assemble(dense, sparse)
    again = trace(model)
    disconnect(again)
    assert copies(again) == 0 and copies(assemble(model, {})) == 1
    assert torch.equal(again(x).contiguous(), model(x).contiguous())
