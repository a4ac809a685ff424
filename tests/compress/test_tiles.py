"""Patterns "tile" and "tile+2:4": what goes, how much, and what a weight of such zeros is recognized as."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from torchaccel.compress import Sparsity, check_mask, pattern_of, sparsify_
from torchaccel.compress.patterns import largest, scores, two_of_four
from torchaccel.ops import blocks


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 128, 3), nn.Conv2d(128, 192, 3), nn.Conv2d(192, 256, 1), nn.Flatten(), nn.Linear(256, 128),
        nn.Linear(128, 4),
    )  # fmt: skip


def empty_tiles(weight: Tensor, pattern: str) -> float:
    """The share of tiles without a nonzero, by a plain loop."""
    rows, columns = blocks.block_of(pattern)
    kernel = [(y, x) for y in range(weight.shape[2]) for x in range(weight.shape[3])] if weight.dim() == 4 else [()]
    found = [
        not weight[(slice(o, o + rows), slice(c, c + columns), *at)].any()
        for o in range(0, weight.shape[0], rows)
        for c in range(0, weight.shape[1], columns)
        for at in kernel
    ]
    return sum(found) / len(found)


@pytest.mark.parametrize(("pattern", "amount", "tiles"), [("tile", 0.75, 0.75), ("tile+2:4", 0.75, 0.5)])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_prunes_what_it_says(pattern: str, amount: float, tiles: float, scope: str) -> None:
    model = network()
    done = sparsify_(model, Sparsity(pattern, amount, scope=scope))
    assert set(done.pruned) == ({"1", "2", "4"} if pattern == "tile" else {"1", "4"}), "192 is no multiple of 128"
    for name, share in done.pruned.items():
        weight = model.get_submodule(name).weight.detach()
        check_mask(weight, pattern)
        if scope == "layer":
            assert pattern_of(weight) == pattern
            # A layer of few tiles keeps a whole number of them.
            assert share == pytest.approx(amount, abs=0.02 if name == "1" else 0.25)
            assert empty_tiles(weight, pattern) == pytest.approx(tiles, abs=0.02 if name == "1" else 0.25)
    assert ("192" in done.kept.get("2", "")) == (pattern == "tile+2:4")


def test_two_of_four_stay_within_the_tiles_that_score_most_with_them() -> None:
    model = nn.Sequential(nn.Linear(256, 64, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(1.0)  # the first tile: a norm of 64 sqrt(2), half of which 2:4 takes
        model[0].weight[:, 128:] = torch.tensor([1.3, 1.3, 0.0, 0.0]).repeat(32)
    assert scores(model[0].weight, "tile+2:4").argmax() == 0
    sparsify_(model, Sparsity("tile+2:4", 0.75), filter_fn=lambda m, n: True)
    assert not model[0].weight[:, :128].any() and (model[0].weight[:, 128:].sum(1) > 0).all()


def test_steps_start_at_two_four_and_never_bring_weights_back() -> None:
    model, sparsity = network(), Sparsity("tile+2:4", 0.75, steps=(0.5, 0.625, 0.75))
    zeros = torch.zeros_like(model[1].weight, dtype=torch.bool)
    for amount in sparsity.steps or ():
        done = sparsify_(model, replace(sparsity, amount=amount, steps=None))
        assert done.pruned["1"] == pytest.approx(amount, abs=0.02)
        now = model[1].weight == 0
        assert now[zeros].all()
        zeros = now
        with torch.no_grad():
            model[1].parametrizations.weight.original.add_(torch.randn_like(model[1].weight))
    check_mask(model[1].weight, "tile+2:4")


def test_check_mask_says_where() -> None:
    weight = torch.ones(128, 128, 1, 1)
    weight[:64, 64:] = 0
    check_mask(weight, "tile")
    weight[3, 70] = 1
    with pytest.raises(
        ValueError, match=r"tile prunes whole blocks, found 1 nonzeros of 4096 at output channels 0 to 63"
    ):
        check_mask(weight, "tile")
    weight = torch.tensor([1.0, 0, 0, 1]).repeat(128, 32)
    check_mask(weight, "tile+2:4")
    weight[:64] = 0
    check_mask(weight, "tile+2:4")
    weight[64:, :4] = 0
    with pytest.raises(ValueError, match=r"tile\+2:4 prunes whole blocks, found 3968 nonzeros of 4096"):
        check_mask(weight, "tile+2:4")
    weight[64:, :3] = 1
    with pytest.raises(ValueError, match="found 3 at output channels 64 to 64"):
        check_mask(weight, "tile+2:4")


def test_patterns_that_look_alike() -> None:
    torch.manual_seed(0)
    weight = torch.randn(128, 256)
    tiles = largest(scores(weight, "tile"), 0.5).repeat_interleave(64, 0).repeat_interleave(64, 1)
    assert pattern_of(weight * tiles) == "tile"
    two_four = weight * two_of_four(weight)
    assert pattern_of(two_four) == "2:4"
    two_four[64:, :128] = 0
    assert pattern_of(two_four) == "tile+2:4"
    assert pattern_of(two_four[:96]) == "2:4", "96 channels are no whole tiles"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"amount": 0.4}, r"amount is 0.4, accepted for tile\+2:4 is at least 0.5"),
        ({"amount": 0.75, "steps": (0.25, 0.75)}, r"steps is \(0.25, 0.75\), accepted for tile\+2:4"),
    ],
)
def test_amounts_that_two_four_exceeds(arguments: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Sparsity("tile+2:4", **arguments)
