"""Chains through files, accelerate and the accuracy gate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import torchaccel as ta
from tests.graph.test_layouts import all_sparse
from tests.graph.test_pools import all_int8, near
from tests.models import SmallMobileNet, SmallNet, settled
from torchaccel import measure
from torchaccel.graph.chain import chained
from torchaccel.graph.choose import Choice
from torchaccel.graph.connect import assemble
from torchaccel.graph.prepare import prepare
from torchaccel.nn import ConvChain, SparseConv2d
from torchaccel.nn.dense import DenseConv2d
from torchaccel.workflow.checkpoint import KEY, read_metadata
from torchaccel.workflow.gates import hold_accuracy
from torchaccel.workflow.progress import Progress
from torchaccel.workflow.running import inner
from torchaccel.workflow.sliced import Sliced, can_slice

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def chains(model: nn.Module) -> list[ConvChain]:
    return [module for module in model.modules() if isinstance(module, ConvChain)]


def output(model: nn.Module, x: Tensor = X) -> Tensor:
    with torch.no_grad():
        return model(x)


@pytest.fixture(scope="module")
def models() -> tuple[nn.Module, nn.Module]:
    """A model in int8, without chains and with them."""
    prepared, chosen = all_int8(settled(SmallNet()), X)
    return assemble(prepared.dense, chosen), assemble(prepared.dense, chosen, chosen.keys())


@pytest.fixture(scope="module")
def sparse_models() -> tuple[nn.Module, nn.Module]:
    """A pruned model in sparse float layers, without chains and with them."""
    prepared, chosen = all_sparse(settled(SmallNet()), X)
    return assemble(prepared.dense, chosen), assemble(prepared.dense, chosen, chosen.keys())


@pytest.fixture
def path(models: tuple[nn.Module, nn.Module], tmp_path: Path) -> Path:
    ta.save(models[1], tmp_path / "chained.safetensors")
    return tmp_path / "chained.safetensors"


def edited(path: Path, change) -> Path:
    metadata = read_metadata(path)
    change(metadata)
    target = path.with_name("edited.safetensors")
    save_file(load_file(path), target, {KEY: json.dumps(metadata)})
    return target


def test_a_model_with_chains_reloads_with_them_to_the_bit(models: tuple[nn.Module, nn.Module], path: Path) -> None:
    loaded = ta.load(path, SmallNet)
    assert chains(loaded) and chained(loaded) == chained(models[1])
    for n in (4, 1):
        assert torch.equal(output(loaded, X[:n]), output(models[1], X[:n]))
        assert torch.equal(output(loaded, X[:n]), output(models[0], X[:n]))
    assert chains(models[1]), "saving leaves the model as it is"


def test_chains_with_depthwise_layers_reload(tmp_path: Path) -> None:
    prepared, chosen = all_int8(settled(SmallMobileNet()), X)
    fast = assemble(prepared.dense, chosen, chosen.keys())
    ta.save(fast, tmp_path / "chained.safetensors")
    loaded = ta.load(tmp_path / "chained.safetensors", SmallMobileNet)
    assert len(chains(loaded)) == 1 and chained(loaded) == chained(fast)
    assert torch.equal(output(loaded), output(fast))


def test_chains_of_float_layers_reload(sparse_models: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
    apart, fast = sparse_models
    ta.save(fast, tmp_path / "chained.safetensors")
    loaded = ta.load(tmp_path / "chained.safetensors", SmallNet)
    assert len(chains(loaded)) == 1 and chained(loaded) == chained(fast) and {"pool"} < set(chained(fast))
    for n in (4, 1):
        assert torch.equal(output(loaded, X[:n]), output(fast, X[:n]))
        near(output(loaded, X[:n]), output(apart, X[:n]), 1e-5)
    ta.save(loaded, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "chained.safetensors").read_bytes()


def test_chains_of_dense_layers_reload(tmp_path: Path) -> None:
    dense = prepare(settled(SmallNet()), (X,)).dense
    names = {name for name, module in dense.named_modules() if isinstance(module, DenseConv2d)}
    fast = assemble(dense, {}, names)
    ta.save(fast, tmp_path / "chained.safetensors")
    loaded = ta.load(tmp_path / "chained.safetensors", SmallNet)
    assert len(chains(loaded)) == 1 and chained(loaded) == chained(fast) and set(chained(fast)) > names
    assert torch.equal(output(loaded), output(fast))
    near(output(loaded), output(dense), 1e-5)


def test_a_model_with_chains_runs_in_slices(sparse_models: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
    fast = sparse_models[1]
    assert can_slice(fast)
    ta.save(Sliced(fast, 3), tmp_path / "sliced.safetensors")
    loaded = ta.load(tmp_path / "sliced.safetensors", SmallNet)
    assert isinstance(loaded, Sliced) and loaded.size == 3 and chained(loaded.model) == chained(fast)
    near(output(loaded), output(fast), 1e-5)


def test_a_file_holds_the_layers_under_their_own_names(models: tuple[nn.Module, nn.Module], path: Path) -> None:
    ta.save(models[0], path.with_name("apart.safetensors"))
    apart, together = load_file(path.with_name("apart.safetensors")), load_file(path)
    assert apart.keys() == together.keys() and all(torch.equal(apart[name], together[name]) for name in apart)
    one, other = read_metadata(path.with_name("apart.safetensors")), read_metadata(path)
    assert one["chains"] == [] and set(other["chains"]) == set(chained(models[1])) and one["layers"] == other["layers"]
    ta.save(ta.load(path, SmallNet), path.with_name("again.safetensors"))
    assert read_metadata(path.with_name("again.safetensors")) == other


def test_a_file_from_before_there_were_chains_loads(models: tuple[nn.Module, nn.Module], path: Path) -> None:
    loaded = ta.load(edited(path, lambda metadata: metadata.pop("chains")), SmallNet)
    assert not chains(loaded) and torch.equal(output(loaded), output(models[0]))


@pytest.mark.parametrize("bad", [5, None, "stem.0", [1, 2], [["stem.0"]], {"stem.0": 1}])
def test_bad_names_of_chains_are_refused(path: Path, bad: object) -> None:
    with pytest.raises(ValueError, match=r"chains is .*, accepted is a list of names of layers"):
        ta.load(edited(path, lambda metadata: metadata.update(chains=bad)), SmallNet)


def test_names_that_form_no_chain_are_no_harm(models: tuple[nn.Module, nn.Module], path: Path) -> None:
    loaded = ta.load(edited(path, lambda metadata: metadata.update(chains=["stem.0", "nowhere"])), SmallNet)
    assert not chains(loaded) and torch.equal(output(loaded), output(models[0]))


def test_a_chained_model_is_accelerated_again(
    models: tuple[nn.Module, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("torchaccel.workflow.candidates.served", lambda layer, device: None)
    for speedup in (2.0, 0.5):
        made = measure.Comparison(speedup, speedup, speedup, (speedup,), (1.0,))
        monkeypatch.setattr(
            measure, "compare", lambda dense, candidate, made=made, **_: (dense(), candidate(), made)[2]
        )
        fast = ta.accelerate(models[1], (X,))
        words = [choice.reason for choice in fast.choices if choice.name in chained(models[1])]
        if speedup > 1:
            assert chained(fast) == chained(models[1])
            assert torch.equal(output(fast), output(models[1]))
            assert all("in a chain of" in reason for reason in words)
        else:  # what was given is returned
            assert torch.equal(output(fast), output(models[1])) and not any("chain" in reason for reason in words)


@pytest.mark.parametrize("speedup", [2.0, 0.5])
def test_a_pruned_model_is_accelerated_with_chains(
    speedup: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("torchaccel.workflow.candidates.served", lambda layer, device: None)
    made = measure.Comparison(speedup, speedup, speedup, (speedup,), (1.0,))
    monkeypatch.setattr(measure, "compare", lambda dense, candidate, **_: (dense(), candidate(), made)[2])
    model = settled(SmallNet())
    ta.sparsify_(model, ta.Sparsity("unstructured", 0.8))
    fast = ta.accelerate(model, (X,))
    near(output(fast), output(model), 1e-4)
    words = {choice.name: choice.reason for choice in fast.choices}
    if speedup > 1:  # with the stem, which is not pruned
        assert {name for name, reason in words.items() if "in a chain of 6 layers" in reason} == {
            "stem.0", "block1.conv1", "block1.conv2", "block2.conv1", "block2.shortcut", "block2.conv2",
        }  # fmt: skip
        assert len(chains(fast)) == 1
    else:
        assert not chains(fast) and not any("chain" in reason for reason in words.values())


def test_sparse_layers_put_back_for_accuracy_leave_their_chain() -> None:
    prepared, winners = all_sparse(settled(SmallNet()), X)
    choices = [Choice(name, "", "", 0.0, "float", 2.0, 2.0, 1.0, "") for name in winners]

    def evaluate(model: nn.Module) -> float:
        return 1.0 - 0.01 * sum(isinstance(module, SparseConv2d) for module in model.modules())

    fast, after, value, _ = hold_accuracy(
        prepared.dense, winners, winners.keys(), choices, (X,), evaluate, 0.965, Progress()
    )
    back = {choice.name for choice in after if "put back for accuracy" in choice.reason}
    assert value >= 0.965 and back and back.isdisjoint(chained(inner(fast)))
    near(output(fast), output(prepared.dense), 1e-4)


def test_layers_put_back_for_accuracy_leave_their_chain() -> None:
    prepared, winners = all_int8(settled(SmallNet()), X)
    choices = [Choice(name, "", "", 0.0, "int8", 2.0, 2.0, 1.0, "") for name in winners]
    seen: list[int] = []

    def evaluate(model: nn.Module) -> float:
        held = [
            name for name, m in model.named_modules() if type(m).__name__.startswith("Int8") and m not in chains(model)
        ]
        seen.append(len(held))
        return 1.0 - 0.01 * len(held)

    fast, after, value, notes = hold_accuracy(
        prepared.dense, winners, winners.keys(), choices, (X,), evaluate, 0.95, Progress()
    )
    back = {choice.name for choice in after if "put back for accuracy" in choice.reason}
    assert value >= 0.95 and seen[0] == len(winners) and len(winners) - len(back) == seen[-1] <= 5
    assert back.isdisjoint(chained(fast)) and f"{len(back)} of {len(winners)}" in notes[0]
    names = {name for name, m in fast.named_modules() if type(m).__name__.startswith("Dense")}
    assert {name for name in back if "pool" not in name} <= names
    expected = assemble(prepared.dense, {name: winners[name] for name in winners.keys() - back})
    assert torch.equal(output(fast), output(expected))
