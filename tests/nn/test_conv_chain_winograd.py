"""Dense layers of float chains that are made by Winograd's method: as exact as others, for all geometries."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from tests.nn.chain_bodies import Layer, Recipe, by_reference, images, running_on
from tests.nn.float_bodies import expected, make
from torchaccel import _native
from torchaccel.nn import ConvChain, SparseConv2d
from torchaccel.nn._chain_layout import Window
from torchaccel.nn._chain_winograd import fits
from torchaccel.nn.dense import DenseConv2d
from torchaccel.ops._chain_step import WINOGRAD_SLAB, Kind
from torchaccel.ops._winograd import matrices
from torchaccel.testing import assert_exact_enough

ISAS = _native.isas_available() or ("reference",)
GEOMETRIES = {
    "7x7 stride 2": (nn.Conv2d(3, 64, 7, stride=2, padding=3), (48, 61)),
    "3x3": (nn.Conv2d(40, WINOGRAD_SLAB + 6, 3, padding=1), (30, 28)),
    "3x3 in rows without gaps": (nn.Conv2d(20, 16, 3, padding=1, bias=False), (14, 14)),
    "5x5 stride 2": (nn.Conv2d(8, 17, 5, stride=2, padding=2), (31, 55)),
    "7x7 stride 3 x 2, rows dilated": (nn.Conv2d(6, 18, 7, stride=(3, 2), padding=(4, 1), dilation=(2, 1)), (31, 55)),
    "4x4": (nn.Conv2d(6, 19, 4), (30, 33)),
    "1x3, few rows": (nn.Conv2d(24, 16, (1, 3), padding=(0, 1)), (3, 40)),
}


def chain_of(conv: nn.Conv2d) -> ConvChain:
    """A chain of a dense layer, and one that hands on what it gives."""
    copy = nn.Conv2d(conv.out_channels, conv.out_channels, 1, bias=False)
    copy.weight.data = torch.eye(conv.out_channels).view(copy.weight.shape)
    layers = {"dense": DenseConv2d.from_float(conv), "copy": SparseConv2d.from_float(copy, "unstructured")}
    graph = fx.Graph()
    node = graph.placeholder("x")
    for name in layers:
        node = graph.call_module(name, (node,))
    graph.output(node)
    return ConvChain(fx.GraphModule(layers, graph).eval())


def kinds(chain: ConvChain, x: Tensor) -> list[Kind]:
    plan = chain.plan(x, 1)
    assert plan is not None
    return [Kind(int(step[0])) for step in plan.steps]


@pytest.mark.parametrize("taps", [3, 4])
def test_the_matrices_make_convolutions(taps: int) -> None:
    a, b, g = matrices(taps)
    x, w = torch.randn(taps + 3).double(), torch.randn(taps).double()
    torch.testing.assert_close(a @ ((g @ w) * (b @ x)), F.conv1d(x.view(1, 1, -1), w.view(1, 1, -1)).flatten())


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("name", GEOMETRIES)
@torch.no_grad()
def test_errors_stay_within_the_rule(name: str, positive: bool) -> None:
    conv, size = GEOMETRIES[name]
    x = torch.randn(5, conv.in_channels, *size, generator=torch.Generator().manual_seed(3))
    x = x.abs() if positive else x
    chain = chain_of(conv)
    assert Kind.WINOGRAD in kinds(chain, x)
    bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias
    window = conv.stride, conv.padding, conv.dilation
    exact = F.conv2d(x.double(), conv.weight.double(), bias.double(), *window)
    size_of = F.conv2d(x.double().abs(), conv.weight.double().abs(), bias.double().abs(), *window)
    depth = conv.weight[0].numel()
    assert_exact_enough(by_reference(chain, x[:1]), exact[:1], size_of[:1], depth)
    for isa in ISAS:
        for n, threads in ((1, 1), (1, 3), (5, 1), (5, 2)):
            with running_on(isa, threads):
                assert_exact_enough(chain(x[:n]), exact[:n], size_of[:n], depth)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
def test_residuals_and_activations(isa: str, activation: str) -> None:
    plain = Layer(channels=32, kernel=(3, 3), padding=(1, 1), pattern="dense", activation=activation)
    added = Layer(kernel=(3, 3), padding=(1, 1), pattern="dense", residual=True, activation=activation)
    recipe = Recipe((Layer(channels=32, pattern="unstructured"), plain, added), (8, 27, 30))
    body, x = make(recipe), images(recipe, 4)
    chain, wanted = ConvChain(body), expected(body, x)
    assert kinds(chain, x).count(Kind.WINOGRAD) == 2
    with torch.no_grad():
        wanted.check(by_reference(chain, x[:1]))
        for n, threads in ((1, 2), (4, 1)):
            with running_on(isa, threads):
                wanted.check(chain(x[:n]))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("special", [float("nan"), float("inf"), -3e38])
@torch.no_grad()
def test_what_is_not_finite_spreads_over_a_strip_alone(isa: str, special: float) -> None:
    conv = nn.Conv2d(20, 16, 3, padding=1)
    x = torch.randn(3, 20, 52, 52)  # blocks 13 wide, whose last strip is one output and must not see what lies behind
    x[1, 4, 10, 13] = special
    with running_on(isa, 1):
        y = chain_of(conv)(x)
    away = torch.ones(3, 1, 52, 52, dtype=torch.bool)
    away[1, :, 9:12, 13 - 4 : 13 + 5] = False
    torch.testing.assert_close(torch.where(away, y, 0), torch.where(away, conv(x), 0), atol=1e-4, rtol=0)
    read = y[1, :, 9:12, 12:15]
    assert not read.isfinite().any() if special != -3e38 else (read.abs() > 1e30).logical_or(~read.isfinite()).any()


@torch.no_grad()
def test_where_it_would_not_be_faster() -> None:
    few = nn.Conv2d(16, 16, 3, padding=1)
    assert not fits(torch.empty(16, 4, 3, 3), Window((3, 3)))
    assert not fits(torch.empty(8, 40, 3, 3), Window((3, 3)))
    assert not fits(torch.empty(16, 40, 3, 3), Window((3, 3), dilation=(1, 2)))
    assert not fits(torch.empty(16, 40, 3, 2), Window((3, 2)))
    assert Kind.WINOGRAD not in kinds(chain_of(few), torch.empty(1, 16, 8, 8)), "blocks are two wide"
    assert Kind.WINOGRAD in kinds(chain_of(few), torch.empty(1, 16, 16, 16))
