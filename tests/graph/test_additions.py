"""Additions that no convolution takes as its residual: which become layers, and when they hand int8 on."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.test_chain import chains, found
from tests.graph.test_joining import Summing, X, net
from tests.graph.test_pools import all_int8, dtypes, near
from torchaccel.graph.connect import assemble, disconnect
from torchaccel.graph.prepare import prepare
from torchaccel.graph.trace import trace
from torchaccel.nn import ConvChain, InputRange, Int8Add, Int8Conv2d
from torchaccel.nn.add import Add
from torchaccel.nn.dense import DenseConv2d


class Between(nn.Module):
    """Two activated convolutions, an addition and a convolution."""

    def __init__(self, join: Callable[..., Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.last, self.join = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), join

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.join(torch.relu(self.a(x)), torch.relu(self.b(x))))


def _shared(a: Tensor, b: Tensor) -> Tensor:
    return a.add_(b) * a


def _viewed(a: Tensor, b: Tensor) -> Tensor:
    seen = a[:]
    seen.add_(b)
    return a


JOINS = [
    (lambda a, b: a + b, "none"),
    (lambda a, b: torch.relu(a + b), "relu"),
    (lambda a, b: F.relu6(torch.add(a, b)), "relu6"),
    (lambda a, b: F.silu(a.add(b)), "silu"),
    (lambda a, b: a.add_(b), "none"),
    (lambda a, b: F.gelu(a + a), "gelu"),
    (lambda a, b: torch.relu(a + b) + b, "relu none"),
    (_shared, ""),
    (_viewed, ""),
    (lambda a, b: torch.add(a, b, alpha=2), ""),
    (lambda a, b: a + b[:, :1], ""),
    (lambda a, b: a + 1, ""),
    (lambda a, b: a + b.to(torch.float64).float()[0], ""),
    (lambda a, b: a.unflatten(1, (2, 4)).add(b.unflatten(1, (2, 4))).flatten(1, 2), ""),
]


@pytest.mark.parametrize(("join", "activations"), JOINS)
def test_which_become_layers(join: Callable[..., Tensor], activations: str) -> None:
    torch.manual_seed(0)
    model = Between(join).eval()
    prepared = prepare(copy.deepcopy(model), (X,))
    assert prepared.note is None
    sums = [module for module in prepared.dense.modules() if isinstance(module, Add)]
    assert [module.activation for module in sums] == activations.split() and len(prepared.weightless) == len(sums)
    with torch.no_grad():
        near(prepared.dense(X), model(X), 1e-5)


def test_an_addition_to_the_input_changes_it_as_before() -> None:
    class Changing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x.add_(torch.relu(self.a(x))))

    prepared = prepare(Changing().eval(), (X.clone(),))
    x = X.clone()
    with torch.no_grad():
        prepared.dense(x)
    assert prepared.weightless == [] and not torch.equal(x, X)


def test_sums_hand_int8_on() -> None:
    model = net(Summing)
    prepared, chosen = all_int8(model, X)
    sums = [name for name, module in chosen.items() if isinstance(module, Int8Add)]
    assert sums == prepared.weightless and len(sums) == 4
    fast = assemble(prepared.dense, chosen)
    seen = dtypes(fast, X)
    assert [name for name, (_, out) in seen.items() if out == torch.float32] == ["last.0"]
    with torch.no_grad():
        y = fast(X)
        near(y, model(X), 0.05)
        disconnect(fast)  # type: ignore[arg-type]
        near(fast(X), model(X), 0.05)
    assert all(out == torch.float32 for _, out in dtypes(fast, X).values())


def test_what_is_handed_floats_stays_float_around_a_sum() -> None:
    prepared, chosen = all_int8(Between(lambda a, b: a + b).eval(), X)
    del chosen["b"]
    graph = assemble(prepared.dense, chosen)
    assert graph.get_submodule("a").output_dtype == torch.uint8
    with torch.no_grad():
        near(graph(X), prepared.dense(X), 0.05)


def test_a_model_with_sums_is_prepared_again() -> None:
    model = net(Summing)
    prepared, chosen = all_int8(model, X)
    again = prepare(assemble(prepared.dense, chosen, chosen.keys()), (X,))
    assert again.note is None and again.weightless == prepared.weightless
    assert all(isinstance(again.given[name], Int8Add) for name in again.weightless)
    assert all(isinstance(again.dense.get_submodule(name), Add) for name in again.weightless)


class Summed(nn.Module):
    """A layer that was made by hand, called as often as is said, and activated behind its last call."""

    def __init__(self, made: nn.Module, calls: int) -> None:
        super().__init__()
        self.a, self.sum, self.calls = nn.Conv2d(3, 3, 1), made, calls

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        for _ in range(self.calls):
            y = self.sum(y, x)
        return self.a(torch.relu(y))


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("int8", [True, False])
def test_an_activation_behind_a_given_sum_is_its_own(int8: bool, calls: int) -> None:
    u8 = InputRange(0.05, 128)
    model = Summed(Int8Add.from_ranges(u8, u8) if int8 else Add(), calls).eval()
    with torch.no_grad():
        expected = model(X)
        prepared = prepare(model, (X,))
        assert prepared.note is None and model.sum.activation == "none"
        near(prepared.dense(X), expected, 0.05 if int8 else 1e-5)
        chosen = {name: prepared.given[name] for name in prepared.weightless if int8}
        near(assemble(prepared.dense, chosen)(X), expected, 0.05 if int8 else 1e-5)
        assert len(chosen) == (int8 and calls == 1)
        assert torch.equal(model(X), expected)


def _sum(first: InputRange, second: InputRange, output: InputRange | None) -> Int8Add:
    made = Int8Add.from_ranges(first, second, "relu")
    if output is not None:
        made.set_output(output.scale, output.zero_point, output.dtype)
    return made


class Chained(nn.Module):
    """A float input that is quantized twice, by a convolution and by a sum."""

    def __init__(self, outside_first: bool) -> None:
        super().__init__()
        u8, s8, narrow = InputRange(0.03, 128), InputRange(0.02, -7, torch.int8), InputRange(0.01, 3)
        torch.manual_seed(1)
        self.a, self.b = (Int8Conv2d.from_float(nn.Conv2d(3, 3, 3, padding=1), given) for given in (u8, narrow))
        self.a.set_output(s8.scale, s8.zero_point, s8.dtype)
        self.sum = _sum(u8, s8, narrow) if outside_first else _sum(s8, u8, narrow)
        self.b.set_output(0.02, 9, torch.uint8)
        self.outside_first = outside_first

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.sum(x, self.a(x)) if self.outside_first else self.sum(self.a(x), x))


@pytest.mark.parametrize("outside_first", [False, True])
def test_a_sum_quantizes_what_is_outside_of_its_chain(outside_first: bool) -> None:
    model = Chained(outside_first).eval()
    graph = trace(model)
    assert found(graph) == [["a", "sum", "b"]]
    chain = ConvChain(graph)
    with torch.no_grad():
        assert torch.equal(chain(X), model(X)) and None not in chain._plans.values()


def test_a_sum_that_gives_floats_is_in_no_chain() -> None:
    model = Chained(True).eval()
    model.sum.set_float()
    assert found(trace(model)) == []


def test_a_sum_of_the_input_and_itself_in_float() -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.sum, self.more = DenseConv2d(3, 3, 3, padding=1), Add("relu6"), Add()

        def forward(self, x: Tensor) -> Tensor:
            y = self.sum(x, self.a(x))
            return self.more(y, y)

    model = Doubled().eval()
    assert found(trace(model)) == [["a", "sum", "more"]]
    chain = ConvChain(trace(model))
    with torch.no_grad():
        torch.testing.assert_close(chain(X), model(X), rtol=1e-5, atol=1e-5)
    assert chains(nn.Sequential(chain)) and None not in chain._plans.values()
