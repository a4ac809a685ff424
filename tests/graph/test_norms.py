"""BatchNorm that folds into no layer: it becomes one, which is exchanged, fused and chained like others."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchaccel as ta
from tests.graph.test_chain import chains
from tests.graph.test_joining import X, names_of, net
from tests.graph.test_pools import all_int8, near
from tests.models import settled
from torchaccel.graph.chain import chained
from torchaccel.graph.connect import assemble
from torchaccel.graph.prepare import prepare
from torchaccel.nn import Int8Conv2d
from torchaccel.nn.dense import DenseConv2d
from torchaccel.nn.scale import DenseScale


class PreActivation(nn.Module):
    """Residual blocks that normalize what they read, a dense block with averages behind it, and a last norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.n1, self.c1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.n2, self.c2, self.c4 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.n3, self.c3, self.average = nn.BatchNorm2d(16), nn.Conv2d(16, 8, 1), nn.AvgPool2d(2)
        self.around, self.n4 = nn.AvgPool2d(3, 1, 1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.c2(F.relu(self.n2(self.c1(F.relu(self.n1(x))))))
        x = self.average(self.c3(F.relu6(self.n3(torch.cat([x, self.c4(x)], 1)))))
        return F.relu(self.n4(self.around(x))).mean((2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_becomes_a_layer_with_its_activation(dtype: torch.dtype) -> None:
    model, x = net(PreActivation).to(dtype), X.to(dtype)
    prepared = prepare(copy.deepcopy(model), (x,))
    assert prepared.note is None
    scales = [(n, m.activation) for n, m in prepared.dense.named_modules() if isinstance(m, DenseScale)]
    expected = [("n1", "relu"), ("n3", "relu6"), ("n4", "relu")] if dtype == torch.float32 else []
    assert sorted(scales) == expected
    with torch.no_grad():
        near(prepared.dense(x), model(x), 0.02 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("activation", ["none", "relu", "silu"])
def test_a_scale_is_a_depthwise_convolution(layout: torch.memory_format, activation: str) -> None:
    torch.manual_seed(0)
    conv, x = nn.Conv2d(6, 6, 1, groups=6), torch.randn(2, 6, 5, 7).contiguous(memory_format=layout)
    assert DenseScale.serves(conv)
    layer, residual = DenseScale.from_float(conv), torch.randn(2, 6, 5, 7)
    layer.fuse_activation(activation)
    act = {"none": lambda y: y, "relu": F.relu, "silu": F.silu}[activation]
    for x_ in (x, x.double(), x[0]):
        plain = conv.to(x_.dtype)
        layer.to(x_.dtype)
        added = residual.to(x_.dtype)[: x_.shape[0]] if x_.dim() == 4 else residual[0]
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                y = layer(x_)
                assert y.is_contiguous(memory_format=layout) or x_.dim() == 3
                torch.testing.assert_close(y, act(plain(x_)), rtol=1e-5, atol=1e-6)
                torch.testing.assert_close(layer(x_, added), act(plain(x_) + added), rtol=1e-5, atol=1e-6)
        y.sum().backward()
        expected = torch.autograd.grad(act(plain(x_)).sum(), [plain.weight])[0]
        torch.testing.assert_close(layer.weight.grad, expected, rtol=1e-4, atol=1e-5)
        layer.zero_grad()


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 3), (3, 4, 4)])
def test_a_scale_refuses_what_the_convolution_refuses(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    for given in (x, x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x):
        with torch.no_grad(), pytest.raises(RuntimeError, match=r"[Ee]xpected|convolution"):
            DenseScale.from_float(nn.Conv2d(1, 1, 1, groups=1))(given)


def test_a_scale_follows_its_weights() -> None:
    layer = DenseScale.from_float(nn.Conv2d(3, 3, 1, groups=3))
    with torch.no_grad():
        layer(X)
        layer.weight.mul_(2)
        layer.bias.add_(1)  # type: ignore[union-attr]
        torch.testing.assert_close(layer(X), layer.to_float()(X), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [{"groups": 3}, {"kernel_size": 3}, {"stride": 2}, {"padding": 1}, {"bias": False}, {"out_channels": 12}],
)
def test_other_convolutions_are_no_scales(settings: dict) -> None:
    assert not DenseScale.serves(
        nn.Conv2d(**({"in_channels": 6, "out_channels": 6, "kernel_size": 1, "groups": 6} | settings))
    )


@pytest.mark.parametrize("int8", [True, False])
def test_a_network_of_such_blocks_is_one_chain(int8: bool, tmp_path: Path) -> None:
    model = net(PreActivation)
    prepared, chosen = all_int8(model, X) if int8 else (prepare(copy.deepcopy(model), (X,)), {})
    names = names_of(prepared.dense, (DenseConv2d,)) | chosen.keys()
    apart, fast = assemble(prepared.dense, chosen), assemble(prepared.dense, chosen, names)
    (made,) = chains(fast)
    assert {"n1", "n3", "n4", "average", "around"} < set(chained(fast))
    assert not int8 or isinstance(made.body.get_submodule("n3"), Int8Conv2d)
    with torch.no_grad():
        for x in (X, X[:1], torch.randn(2, 3, 17, 21)):
            if int8:
                assert torch.equal(fast(x), apart(x))
            near(fast(x), model(x), 0.05 if int8 else 1e-5)
    assert None not in made._plans.values()
    ta.save(fast, tmp_path / "m.safetensors")
    loaded = ta.load(tmp_path / "m.safetensors", PreActivation)
    with torch.no_grad():
        assert torch.equal(loaded(X), fast(X))


def test_weights_of_one_number_a_channel_lose_nothing_in_int8() -> None:
    model = net(PreActivation)
    model.n1.weight.data[::2] = 0
    prepared, chosen = all_int8(model, X)
    dense, int8 = prepared.dense.get_submodule("n1"), chosen["n1"].to_float()  # type: ignore[operator]
    torch.testing.assert_close(int8.weight, dense.weight, rtol=1e-6, atol=0)
    assert torch.equal(int8.bias, dense.bias)


def test_what_hooks_see_or_others_read_stays() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(x)) * self.a.weight.view(-1, 1, 1))

    model = settled(Read())
    model.b.register_forward_hook(lambda *_: None)
    prepared = prepare(model, (X,))
    assert prepared.note is None and not any(isinstance(m, DenseScale) for m in prepared.dense.modules())


def test_one_without_statistics_or_of_another_type_stays() -> None:
    model, x = settled(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3))), X.half()
    model[1].running_mean = model[1].running_var = None
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        prepared = prepare(copy.deepcopy(model), (given,))
        assert prepared.note is None and not any(isinstance(m, DenseScale) for m in prepared.dense.modules())


def test_it_is_trained_as_before() -> None:
    model = net(PreActivation)
    model.n1.requires_grad_(False)
    dense = prepare(model, (X,)).dense
    assert dense.get_submodule("n3").weight.requires_grad and not dense.get_submodule("n1").weight.requires_grad


def test_plans_draw_no_random_numbers() -> None:
    model = prepare(net(PreActivation), (X,)).dense
    fast = assemble(model, {}, names_of(model, (DenseConv2d,)))
    before = torch.get_rng_state()
    with torch.no_grad():
        fast(X)
    assert chains(fast) and torch.equal(torch.get_rng_state(), before)


def test_one_that_is_called_twice_is_a_layer_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.norm(self.conv(F.relu(self.norm(x)))))

    model = settled(Twice())
    prepared = prepare(copy.deepcopy(model), (X,))
    assert prepared.note is None
    with torch.no_grad():
        near(prepared.dense(X), model(X), 1e-5)
