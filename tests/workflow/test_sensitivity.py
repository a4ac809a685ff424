"""sensitivity: the table says what changing that layer alone does, and what to leave out follows from it."""

from __future__ import annotations

import copy
import inspect
import itertools
import json
import statistics
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import torchaccel as ta
from tests.models import Branching, SmallNet, settled
from torchaccel import measure
from torchaccel.graph.choose import kind

PIXELS, LABELS = load_digits(return_X_y=True)
X = torch.tensor(PIXELS, dtype=torch.float32).view(-1, 1, 8, 8) / 16 - 0.3
Y = torch.tensor(LABELS)
TRAIN, SEEN, HELD_OUT = slice(0, 1000), slice(1000, 1400), slice(1400, None)


@pytest.fixture(autouse=True)
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Kernels lose to dense layers by a tenth, so that no win is remembered; counts the comparisons."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    timed: Counter[str] = Counter()

    def compare(baseline, candidate, **_: object) -> measure.Comparison:
        baseline(), candidate()
        timed[kind(inspect.getclosurevars(candidate).nonlocals["candidate"])] += 1
        return measure.Comparison(0.9, 0.9, 0.9, (0.9,) * 9, (1.0,) * 9)

    monkeypatch.setattr(measure, "compare", compare)
    return timed


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A convolutional network that reads digits, in a second or two."""
    torch.manual_seed(0)

    def block(c_in: int, c_out: int) -> list[nn.Module]:
        return [nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU()]

    blocks = [*block(1, 32), *block(32, 32), nn.MaxPool2d(2), *block(32, 64), *block(64, 32)]
    model = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(32 * 16, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(6):
        for batch in torch.randperm(1000).split(50):
            optimizer.zero_grad()
            F.cross_entropy(model(X[batch]), Y[batch]).backward()
            optimizer.step()
    return model.eval()


def accuracy(model: nn.Module, part: slice = SEEN) -> float:
    with torch.no_grad():
        return float((model(X[part]).argmax(1) == Y[part]).float().mean())


def moved(model: nn.Module, changed: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((changed(x) - model(x)).norm() / model(x).norm())


def test_a_row_is_that_layer_changed_alone(trained: nn.Module) -> None:
    x, batches = X[SEEN][:64], X[TRAIN].split(100)
    asked = ta.Sparsity("1x4", 0.8, steps=(0.5, 0.8))
    found = ta.sensitivity(
        trained, (x,), sparsity=asked, int8=ta.Int8Static(), calibration=batches, evaluate=accuracy
    )  # fmt: skip
    assert found.facts["forms"] == ["int8 static", "1x4:0.5 int8 static", "1x4:0.8 int8 static"]
    assert found.facts["accuracy"] == accuracy(trained) > 0.9
    names = [name for name, module in trained.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert [row["name"] for row in found.layers] == names * 3
    moves = set()
    for row in found.layers:
        changed, amount = copy.deepcopy(trained), {"1": 0.5, "i": 0.0}[row["form"][0]]
        amount = 0.8 if "0.8" in row["form"] else amount

        def alone(module: nn.Module, name: str, wanted: str = row["name"]) -> bool:
            return name == wanted

        ta.sparsify_(changed, ta.Sparsity("1x4", amount), alone)
        ta.quantize_(changed, ta.Int8Static(), batches, alone)
        assert row["move"] == pytest.approx(moved(trained, changed, x), rel=0.02)
        assert row["accuracy"] == pytest.approx(accuracy(changed), abs=0.006)  # two of 400 may lie on the edge
        assert row["drop"] == found.facts["accuracy"] - row["accuracy"]
        assert row["sparsity"] == pytest.approx(0 if row["name"] == "0" else amount, abs=0.02)  # one input channel
        moves.add(row["move"])
    assert len(moves) == 3 * len(names) - 2 and max(moves) > 0.1 > 0.02 > min(moves)  # the first is not pruned


@pytest.mark.parametrize("int8", [None, ta.Int8Dynamic()])
def test_a_kernel_is_timed_once(clock: Counter[str], int8: ta.Int8Dynamic | None) -> None:
    model, x = settled(SmallNet(32)), torch.randn(8, 3, 16, 16)
    found = ta.sensitivity(model, (x,), sparsity=ta.Sparsity("1x4", 0.9, steps=(0.5, 0.9)), int8=int8)
    layers, pruned = 7, 5  # a linear layer has no sparse kernel, the first convolution has 3 channels
    sparse = {"float 1x4 sparse" if int8 is None else "int8 1x4 sparse": 2 * pruned}
    assert clock == sparse | ({} if int8 is None else {"int8": layers})
    times = [row["speedup"] for row in found.layers]
    assert times.count(0.9) == (2 * pruned if int8 is None else 3 * layers)


def test_the_model_stays_as_it_was(trained: nn.Module) -> None:
    model, calls = copy.deepcopy(trained), 0
    model[1].train()
    ta.sparsify_(model, ta.Sparsity("1x4", 0.5))
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]

    def failing(_: nn.Module) -> float:
        nonlocal calls
        calls += 1
        return 1.0 if calls < 4 else 1 / 0

    with pytest.raises(RuntimeError, match="evaluate raised ZeroDivisionError on the int8 dynamic 7 model"):
        ta.sensitivity(model, (X[:4],), int8=ta.Int8Dynamic(), evaluate=failing)
    ta.sensitivity(model, (X[:4],), int8=ta.Int8Dynamic())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes and model[3].parametrizations


class Twice(nn.Module):
    """Calls one layer two times, and another one never."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.unused = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(torch.relu(self.shared(self.first(self.normed(x)))))


def test_a_model_of_torch_compile_is_taken_as_the_one_within() -> None:
    model, x = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(8, 16)
    plain, compiled = (ta.sensitivity(m, (x,), int8=ta.Int8WeightOnly()) for m in (model, torch.compile(model)))
    assert [row["move"] for row in compiled.layers] == [row["move"] for row in plain.layers]
    assert compiled.facts["model"] == "Sequential" and all(row["move"] for row in compiled.layers)


def test_what_has_no_form_says_why_and_is_left_out() -> None:
    torch.manual_seed(0)
    found = ta.sensitivity(Twice(), (torch.randn(8, 16),), int8=ta.Int8WeightOnly())
    rows = {row["name"]: row for row in found.layers}
    assert rows["first"]["move"] > 0 and rows["first"]["reason"] is None
    for name in ("shared", "unused"):
        assert rows[name]["move"] is rows[name]["speedup"] is None
        assert rows[name]["reason"] == "it is not called just once"
    assert rows["normed"]["reason"] == "its weight has a parametrization of another kind"
    assert found.leave_out(max_move=9).left_out == ["shared", "unused", "normed"]
    net = ta.sensitivity(settled(SmallNet()), (torch.randn(8, 3, 16, 16),), sparsity=ta.Sparsity("2:4", 0.5))
    rows = {row["name"]: row for row in net.layers}
    assert (
        rows["stem.0"]["move"] is None and "input channels divisible by 4, given 32 and 3" in rows["stem.0"]["reason"]
    )
    assert rows["head"]["move"] > 0.01 and "sparse kernels serve convolutions" in rows["head"]["reason"]
    assert net.leave_out(max_move=9).left_out == ["stem.0", "head"]
    assert "sparse kernels serve convolutions" in net.summary()


def test_without_a_kernel_outputs_are_compared_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = settled(SmallNet()), (torch.randn(8, 3, 16, 16),)
    native = ta.sensitivity(model, x, int8=ta.Int8Dynamic())
    monkeypatch.setattr("torchaccel.workflow.candidates.served", lambda layer, device: "no kernel was built")
    found = ta.sensitivity(model, x, int8=ta.Int8Dynamic())
    assert [row["move"] for row in found.layers] == pytest.approx([row["move"] for row in native.layers], rel=1e-3)
    assert {row["reason"] for row in found.layers} == {"no kernel was built"}
    assert not found.leave_out(max_move=9).taken


def test_an_untraceable_model_is_served_and_told() -> None:
    found = ta.sensitivity(Branching().eval(), (torch.randn(4, 3, 8, 8),), int8=ta.Int8Dynamic())
    assert [row["name"] for row in found.layers if 0 < row["move"] < 0.1] == ["a", "b"]
    assert "not traced" in found.facts["notes"][0] and "note: not traced" in found.summary()


def test_the_layers_it_names_are_the_ones_to_leave_out(trained: nn.Module) -> None:
    asked = ta.Sparsity("1x4", 0.8)
    found = ta.sensitivity(trained, (X[SEEN],), sparsity=asked, int8=ta.Int8Dynamic(), evaluate=accuracy)

    def pruned(filter_fn) -> tuple[float, list[str]]:
        model = copy.deepcopy(trained)
        report = ta.sparsify_(model, asked, filter_fn)
        return accuracy(model, HELD_OUT), list(report.pruned)

    named, names = pruned(found.leave_out(max_move=0.75).filter_fn)
    every = pruned(lambda module, name: True)[1]
    assert (len(names), len(every)) == (2, 5)
    others = [pruned(lambda module, name, pair=pair: name in pair)[0] for pair in itertools.combinations(every, 2)]
    assert named > statistics.median(others) + 0.02 and named >= sorted(others)[-2]


def test_the_table_as_text_and_json(trained: nn.Module, tmp_path: Path) -> None:
    found = ta.sensitivity(trained, (X[:8],), int8=[ta.Int8Dynamic(), ta.Int8Static()], evaluate=accuracy)
    found.to_json(tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text()) == found.to_dict()
    lines = found.summary().splitlines()
    assert "batch of 8" in lines[0] and "calibrated on example_inputs alone" in lines[1]
    first = lines.index("int8 dynamic, in one layer at a time") + 2
    rows = sorted(
        (r for r in found.layers if r["form"] == "int8 dynamic"), key=lambda r: (-max(r["drop"], 0), -r["move"])
    )
    assert [line.split()[0] for line in lines[first : first + len(rows)]] == [row["name"] for row in rows]
    assert f"{rows[0]['move']:.2%}" in lines[first] and "0.90" in lines[first]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "neither sparsity nor int8 is given"),
        ({"sparsity": "1x4:0.9"}, "sparsity: given '1x4:0.9', accepted is a Sparsity"),
        ({"int8": ta.Int8Dynamic}, "accepted are Int8Dynamic"),
        ({"int8": [ta.Int8Dynamic(), ta.Int8Dynamic()]}, "'int8 dynamic' is given twice"),
        ({"int8": ta.Int8Dynamic(), "evaluate": lambda model: float("nan")}, "evaluate returned nan for the original"),
        ({"int8": ta.Int8Static(), "calibration": []}, "calibration: it holds no batch"),
    ],
)
def test_bad_input_is_named(trained: nn.Module, given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        ta.sensitivity(trained, (X[:4],), **given)


def test_bad_example_inputs_are_named(trained: nn.Module) -> None:
    with pytest.raises(ValueError, match="example_inputs: given Tensor"):
        ta.sensitivity(trained, X[:4], int8=ta.Int8Dynamic())
    with pytest.raises(ValueError, match="output on them is nan, accepted are inputs"):
        ta.sensitivity(nn.Sequential(nn.Linear(8, 8)), (X[:4] / 0,), int8=ta.Int8Dynamic())
