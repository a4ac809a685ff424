"""sparsify_: which layers, how much, and that masks hold while a model trains, is copied and is saved."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from torchaccel.compress import Sparsity, check_mask, finalize_masks_, pattern_of, sparsify_, sparsity_of
from torchaccel.compress.patterns import PATTERNS

SMALL = [pattern for pattern in PATTERNS if "tile" not in pattern]  # those that fit these small layers


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, groups=32),
        nn.Conv2d(32, 8, 1),
        nn.Conv2d(8, 32, 3), nn.Flatten(),
        nn.Linear(32 * 36, 32), nn.Linear(32, 4),
    )  # fmt: skip


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(4, 3, 8, 8)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("pattern", SMALL)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_prunes_what_it_says(pattern: str, scope: str) -> None:
    model = network()
    done = sparsify_(model, Sparsity(pattern, 0.5, scope=scope))
    # 5 has 8 output channels, 6 has fewer than 16 input channels.
    pruned = {"2", "8"} if pattern == "16x1" else {"2", "5", "8"}
    assert set(done.pruned) == pruned
    assert set(done.kept) == {"0", "2", "4", "5", "6", "8", "9"} - pruned
    total = zeros = 0.0
    for name, share in done.pruned.items():
        weight = model.get_submodule(name).weight
        assert sparsity_of(weight) == pytest.approx(share)
        check_mask(weight, pattern)
        total, zeros = total + weight.numel(), zeros + share * weight.numel()
        if scope == "layer" or pattern == "2:4":
            assert share == pytest.approx(0.5)
    assert zeros / total == pytest.approx(0.5, abs=1e-3)


def test_the_reason_is_given() -> None:
    kept = sparsify_(network(), Sparsity("16x1", 0.5)).kept
    assert "first and the last" in kept["0"] and "first and the last" in kept["9"]
    assert "groups=32" in kept["4"]
    assert "output channels divisible by 16" in kept["5"]
    assert "C=8" in kept["6"]


def test_filter_fn_decides_alone() -> None:
    model = network()
    done = sparsify_(model, Sparsity("unstructured", 0.5), filter_fn=lambda m, name: name in ("0", "4"))
    assert set(done.pruned) == {"0", "4"}
    assert done.kept["2"] == "filter_fn left it out"
    assert set(sparsify_(network(), Sparsity("1x4", 0.5), filter_fn=lambda m, name: True).kept) == {"0", "4"}


def test_global_scope_prunes_small_layers_more_and_none_whole() -> None:
    model = network()
    with torch.no_grad():
        model[2].weight *= 1e-3
    done = sparsify_(model, Sparsity("1x4", 0.5, scope="global"))
    assert done.pruned["2"] > 0.99 > done.pruned["8"]
    assert model[2].weight.count_nonzero() >= 4


@pytest.mark.parametrize("pattern", SMALL)
def test_masks_hold_through_training(pattern: str) -> None:
    model = network()
    parameters = {id(p) for p in model.parameters()}
    optimizer = torch.optim.Adam(model.parameters(), 0.01, weight_decay=0.01)
    step(model, optimizer)
    sparsify_(model, Sparsity(pattern, 0.5))
    assert {id(p) for p in model.parameters()} == parameters
    before = model[2].weight.detach().clone()
    for _ in range(3):
        step(model, optimizer)
    after = model[2].weight
    assert torch.equal(after == 0, before == 0)
    assert not torch.equal(after, before), "the kept weights train"


def test_steps_tighten_and_never_bring_weights_back() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    sparsity = Sparsity("1x4", 0.9, steps=(0.5, 0.75, 0.9))
    zeros = torch.zeros_like(model[2].weight, dtype=torch.bool)
    for amount in sparsity.steps or ():
        done = sparsify_(model, replace(sparsity, amount=amount, steps=None))
        assert done.pruned["2"] == pytest.approx(amount, abs=1e-3)
        step(model, optimizer)
        now = model[2].weight == 0
        assert now[zeros].all()
        zeros = now
    assert sparsify_(model, Sparsity("1x4", 0.2)).pruned["2"] == pytest.approx(0.9, abs=1e-3)


def test_masks_under_distributed_data_parallel(tmp_path: Path) -> None:
    """DDP waits in each step for hooks that it put on the parameters before there were masks."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        model = network()
        parallel = nn.parallel.DistributedDataParallel(model)
        optimizer = torch.optim.SGD(parallel.parameters(), 0.05)
        for change in (lambda: sparsify_(model, Sparsity("1x4", 0.5)), lambda: finalize_masks_(model)):
            change()
            for _ in range(2):
                before = model[2].weight.clone()
                step(parallel, optimizer)
                assert not torch.equal(model[2].weight, before)
    finally:
        torch.distributed.destroy_process_group()


def test_steps_in_one_call_end_at_the_amount() -> None:
    assert sparsify_(network(), Sparsity("1x4", 0.75, steps=(0.5, 0.75))).pruned["2"] == pytest.approx(0.75)


def test_state_dict_and_deepcopy_keep_masks() -> None:
    model = network()
    sparsify_(model, Sparsity("4x4", 0.5))
    other = network()
    with torch.no_grad():
        for p in other.parameters():
            p.normal_()
    sparsify_(other, Sparsity("4x4", 0.25))
    other.load_state_dict(model.state_dict())
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(twin.parameters(), 0.1)
    for m in (other, twin):
        assert torch.equal(m[2].weight, model[2].weight)
    step(twin, optimizer)
    assert torch.equal(twin[2].weight == 0, model[2].weight == 0)


def test_finalize_bakes_in_and_leaves_copies_alone() -> None:
    model = network()
    names, parameters = list(model.state_dict()), {id(p) for p in model.parameters()}
    sparsify_(model, Sparsity("1x4", 0.5))
    twin, weight = copy.deepcopy(model), model[2].weight.detach().clone()
    assert finalize_masks_(model) is model
    assert list(model.state_dict()) == names
    assert {id(p) for p in model.parameters()} == parameters
    assert type(model[2]) is nn.Conv2d
    assert torch.equal(model[2].weight, weight)
    assert torch.equal(twin[2].weight, weight), "a deepcopy taken before still has its mask"
    assert pattern_of(model[2].weight) == "1x4"
    sparsify_(model, Sparsity("2:4", 0.5))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("3x3", 0.5), "pattern is '3x3', accepted are unstructured, 1x4, 4x4, 16x1, 2:4, tile, tile\\+2:4"),
        (("1x4", 1.0), "amount is 1.0, accepted is a number from 0 to below 1"),
        (("1x4", -0.1), "amount is -0.1"),
        (("1x4", float("nan")), "amount is nan"),
        (("2:4", 0.75), "accepted for 2:4 is 0.5"),
        (("1x4", 0.5, (0.4, 0.3, 0.5)), "steps is .* accepted are ascending amounts that end in amount=0.5"),
        (("1x4", 0.5, (0.3, 0.4)), "end in amount=0.5"),
        (("1x4", 0.5, ()), "steps is"),
        (("2:4", 0.5, (0.25, 0.5)), "accepted for 2:4 is None"),
        (("1x4", 0.5, None, "model"), "scope is 'model', accepted are layer, global"),
    ],
)
def test_sparsity_is_validated(arguments: tuple, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Sparsity(*arguments)


def test_an_error_leaves_the_model_as_it_was() -> None:
    model = network()
    with torch.no_grad():
        model[8].weight[0, 0] = float("nan")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="the weight of '8' holds NaN"):
        sparsify_(model, Sparsity("1x4", 0.5))
    assert type(model[2]) is nn.Conv2d
    assert list(model.state_dict()) == list(before)


def test_another_pattern_over_a_mask_is_refused() -> None:
    model = network()
    sparsify_(model, Sparsity("1x4", 0.5))
    with pytest.raises(ValueError, match="'2' already has a mask of pattern '1x4', given is '4x4'"):
        sparsify_(model, Sparsity("4x4", 0.5))


def test_weights_that_others_compute_stay() -> None:
    model = network()
    nn.utils.parametrizations.weight_norm(model[2])
    kept = sparsify_(model, Sparsity("1x4", 0.5)).kept
    assert "parametrization of another kind" in kept["2"]
