"""Models whose Python makes rewriting hard: what folding and fusing must leave, and what exchanged layers must bear."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models import settled
from torchaccel import measure
from torchaccel.compress import Int8Static, calibrate, int8_module
from torchaccel.graph.cache import ChoiceCache
from torchaccel.graph.choose import choose
from torchaccel.graph.connect import assemble, connect
from torchaccel.graph.prepare import Prepared, prepare
from torchaccel.graph.trace import trace
from torchaccel.nn import InputRange, Int8Conv2d
from torchaccel.nn.quantize import QuantizeInt8


class _Model(nn.Module):
    """Layers `a`, `b` and `norm`; a subclass says how they are called."""

    def __init__(self, layers: type[nn.Module] = nn.Conv2d) -> None:
        super().__init__()
        if layers is nn.Conv2d:
            self.a, self.b, self.norm = nn.Conv2d(16, 16, 3, 1, 1), nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)
        else:
            self.a, self.b, self.norm = nn.Linear(16, 16), nn.Linear(16, 16), nn.BatchNorm1d(16)
        self.relu = nn.ReLU(inplace=True)
        self.shift = nn.Parameter(torch.randn(1, 16, 8, 8))


class ReadsWeight(_Model):
    def __init__(self) -> None:
        super().__init__(nn.Linear)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.norm(self.a(x)), self.a.weight.t(), self.a.bias)


class Keywords(_Model):
    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(input=self.norm(input=self.a(input=x)))
        return F.relu(input=self.b(input=y))


class KeywordsUntraced(_Model):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(input=x)
        return self.b(input=y) if y.sum() > -1e9 else y


class NormOverTokens(_Model):
    """BatchNorm1d of [N, C, L] normalizes C; the linear layer before it ends in L."""

    def __init__(self) -> None:
        super().__init__(nn.Linear)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.a(x))


class ChangesItsInput(_Model):
    """`a` reads x before the ReLU changes it."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.0
        shortcut = self.a(x)
        return self.b(self.relu(x)) + shortcut


class AddsInPlace(_Model):
    """The sum is written into a tensor that is read again."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(x)
        y.add_(self.a(x))
        return y.add_(x) * y


class WiderSum(_Model):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + x.double() + (self.b(x) + (x > 0).long())


class Optional(_Model):
    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        y = self.a(x)
        return y if scale is None else y * scale


class Scaled(Optional):
    """The second input may be left out, but is given."""

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        return super().forward(x, scale)


class Nothing(_Model):
    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"y": self.relu(self.norm(self.a(x))), "rest": (None, x)}


class Hooked(_Model):
    def __init__(self) -> None:
        super().__init__()
        self.norm.register_forward_hook(lambda module, args, y: y * 2)
        self.b.register_forward_hook(lambda module, args, y: y - 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.b(self.norm(self.a(x))))


class Shifted(_Model):
    """With one image the sum does not look like one that broadcasts."""

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.relu(self.a(x) + self.shift)) + x.mean(0, keepdim=True)


class TwoInputs(_Model):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.a(x) + self.b(y)


class Chain(_Model):
    """The middle layer stays float: its padding is no zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.reflecting = nn.Conv2d(16, 16, 3, 1, 1, padding_mode="reflect")

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.b(self.relu(self.a(x))))
        return torch.cat([self.reflecting(y), y], 1)


class Flattens(_Model):
    """A view needs one memory format."""

    def __init__(self, branching: bool = False) -> None:
        super().__init__()
        self.branching = branching

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.b(x)).view(x.size(0), -1)
        return y * 2.0 if not self.branching or y.sum() > -1e9 else y


class FlattensUntraced(Flattens):
    def __init__(self) -> None:
        super().__init__(branching=True)


class ReadsLater(_Model):
    """Reads a weight in a way that only a call of the model shows."""

    def forward(self, x: Tensor) -> Tensor:
        layer = self.a
        y = self.b(x)
        return F.conv2d(y, layer.weight, layer.bias) if y.sum() > -1e9 else self.a(y)


def assert_near(given: Any, expected: Any) -> None:
    """The same structure, shapes and dtypes, and numbers as close as int8 is."""
    torch.testing.assert_close(given, expected, rtol=0.0, atol=1e9)
    for y, reference in zip(*map(torch.utils._pytree.tree_leaves, (given, expected)), strict=True):
        if isinstance(y, Tensor):
            assert (y - reference).norm() < 0.1 * reference.norm()


IMAGES, ROWS = (2, 16, 8, 8), (8, 16)


def _exchanged(prepared: Prepared, inputs: tuple[Tensor, ...], monkeypatch, tmp_path: Path) -> nn.Module:
    """Every layer that can be int8 made so, whatever its speed."""
    faster = measure.Comparison(2.0, 2.0, 2.0, (2.0,), (1.0,))
    monkeypatch.setattr(measure, "compare", lambda dense, candidate, **_: (dense(), candidate(), faster)[2])
    ranges = calibrate(prepared.dense, prepared.names, [inputs], Int8Static(), len(inputs))
    alternatives: dict[str, list[nn.Module]] = {}
    kept = {}
    for name in prepared.names:
        dense: Any = prepared.dense.get_submodule(name)
        try:
            module: Any = int8_module(dense.to_float(), Int8Static(), ranges.get(name))
        except ValueError as error:
            kept[name] = str(error)
            continue
        module.fuse_activation(dense.activation)
        alternatives[name] = [module]
    winners, _ = choose(prepared.dense, alternatives, kept, inputs, ChoiceCache(tmp_path / "cache.json"))
    return assemble(prepared.dense, winners)


@pytest.mark.parametrize(
    ("kind", "shapes", "traced", "int8"),
    [
        (ReadsWeight, (ROWS,), True, 0),
        (Keywords, (IMAGES,), True, 2),
        (KeywordsUntraced, (IMAGES,), False, 2),
        (NormOverTokens, ((4, 16, 16),), True, 1),
        (ChangesItsInput, (IMAGES,), True, 2),
        (AddsInPlace, (IMAGES,), True, 2),
        (WiderSum, (IMAGES,), True, 2),
        (Optional, (IMAGES,), False, 1),
        (Nothing, (IMAGES,), True, 1),
        (Hooked, (IMAGES,), True, 1),
        (Shifted, ((1, 16, 8, 8),), True, 2),
        (TwoInputs, (IMAGES, IMAGES), True, 2),
        (Chain, (IMAGES,), True, 2),
        (Flattens, (IMAGES,), True, 1),
        (FlattensUntraced, (IMAGES,), False, 0),
        (ReadsLater, (IMAGES,), False, 1),
        (Scaled, (IMAGES, IMAGES), True, 1),
    ],
)
def test_results_stay(kind: Any, shapes: Any, traced: bool, int8: int, monkeypatch, tmp_path: Path) -> None:
    model = settled(kind(), shapes[0]) if len(shapes) == 1 else kind().eval()
    inputs = tuple(torch.randn(shape) for shape in shapes)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    given = tuple(x.clone() for x in inputs)
    prepared = prepare(copy.deepcopy(model), inputs)
    assert (prepared.note is None) == traced, prepared.note
    fast = _exchanged(prepared, inputs, monkeypatch, tmp_path)
    assert sum(isinstance(m, Int8Conv2d) or type(m).__name__ == "Int8Linear" for m in fast.modules()) == int8
    assert all(torch.equal(x, y) for x, y in zip(inputs, given, strict=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    larger = tuple(torch.cat([x, torch.randn_like(x)]) for x in inputs)
    with torch.no_grad():
        for x in (inputs, larger):
            expected = model(*x)
            torch.testing.assert_close(prepared.dense(*x), expected, rtol=1e-4, atol=1e-4)
            assert_near(fast(*x), expected)


def test_one_image_without_a_batch_stays_dense(monkeypatch, tmp_path: Path) -> None:
    model, inputs = Nothing().eval(), (torch.randn(16, 8, 8),)
    model.norm = nn.Identity()
    fast = _exchanged(prepare(copy.deepcopy(model), inputs), inputs, monkeypatch, tmp_path)
    assert not any(isinstance(m, Int8Conv2d) for m in fast.modules())
    with torch.no_grad():
        torch.testing.assert_close(fast(*inputs), model(*inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_come_back(dtype: torch.dtype, monkeypatch, tmp_path: Path) -> None:
    model, x = settled(Chain(), IMAGES).to(dtype), torch.randn(IMAGES, dtype=dtype)
    fast = _exchanged(prepare(copy.deepcopy(model), (x,)), (x,), monkeypatch, tmp_path)
    assert sum(isinstance(m, Int8Conv2d) for m in fast.modules()) == 2
    with torch.no_grad():
        assert_near(fast(x), model(x))


def test_a_value_changed_between_its_readers_is_quantized_twice() -> None:
    class Changed(_Model):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2.0
            z = self.a(y)
            y.neg_()
            return z + self.b(y)

    model = Changed().eval()
    for name in ("a", "b"):
        layer = getattr(model, name)
        setattr(model, name, Int8Conv2d.from_float(layer, InputRange(0.05, 128)))
    graph, x = trace(model), torch.randn(IMAGES)
    connect(graph)
    assert not any(isinstance(m, QuantizeInt8) for m in graph.modules())
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model(x))


def test_dense_layers_follow_weights_changed_in_place() -> None:
    model, x = Nothing().eval(), torch.randn(IMAGES)
    dense = prepare(model, (x,)).dense
    with torch.no_grad():
        dense(x)
        weight = dense.get_submodule("a").weight
        weight.mul_(2)
        layer: Any = dense.get_submodule("a")
        torch.testing.assert_close(dense(x)["y"], torch.relu(F.conv2d(x, weight, layer.bias, padding=1)))
