"""Masks: what each pattern prunes, that the smallest goes, and what a weight of zeros is recognized as."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torchaccel.compress import check_mask, pattern_of, patterns, sparsity_of
from torchaccel.ops import blocks

BLOCKED = ("unstructured", "1x4", "4x4", "16x1")


def masked(weight: Tensor, pattern: str, amount: float) -> Tensor:
    if pattern == "2:4":
        return weight * patterns.two_of_four(weight)
    kept = patterns.largest(patterns.scores(weight, pattern), amount)
    return weight * patterns.expand(kept, pattern, weight.shape)


@pytest.mark.parametrize("pattern", [*BLOCKED, "2:4"])
@pytest.mark.parametrize("shape", [(32, 48, 3, 3), (16, 16, 1, 1), (32, 64)])
def test_masks_follow_their_pattern(pattern: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight = masked(torch.randn(shape), pattern, 0.5)
    assert sparsity_of(weight) == pytest.approx(0.5)
    check_mask(weight, pattern)
    assert pattern_of(weight) == pattern
    rows, columns = blocks.block_of(pattern)
    values, _, _ = blocks.to_blocks(weight, pattern)
    assert values.shape == (weight.numel() // 2 // (rows * columns), rows, columns), "no block is half empty"


@pytest.mark.parametrize("pattern", BLOCKED)
def test_the_smallest_blocks_go(pattern: str) -> None:
    """Against a plain loop over blocks."""
    torch.manual_seed(1)
    weight = torch.randn(16, 16, 1, 2)
    rows, columns = blocks.block_of(pattern)
    kept = masked(weight, pattern, 0.25)
    norms = []
    for o in range(0, 16, rows):
        for c in range(0, 16, columns):
            for k in range(2):
                block = (slice(o, o + rows), slice(c, c + columns), 0, k)
                norms.append((weight[block].norm().item(), bool((kept[block] != 0).all())))
    norms.sort()
    gone = len(norms) // 4
    assert [whole for _, whole in norms] == [False] * gone + [True] * (len(norms) - gone)


def test_two_of_four_keeps_the_two_largest_input_channels() -> None:
    weight = torch.zeros(1, 8, 1, 2)
    weight[0, :, 0, 0] = torch.tensor([1.0, -4.0, 2.0, -3.0, 5.0, 6.0, 7.0, 8.0])
    weight[0, :, 0, 1] = torch.tensor([9.0, 1.0, 1.5, -9.0, 1.0, 2.0, 1.5, -3.0])
    kept = weight * patterns.two_of_four(weight)
    assert kept[0, :, 0, 0].tolist() == [0, -4, 0, -3, 0, 0, 7, 8]
    assert kept[0, :, 0, 1].tolist() == [9, 0, 0, -9, 0, 2, 0, -3]


def test_one_block_always_stays() -> None:
    assert patterns.largest(torch.rand(4, 4), 0.999).sum() == 1
    assert patterns.largest(torch.zeros(4, 4), 0.5).sum() == 8, "ties are broken, not kept"


def test_no_zeros_is_no_pattern() -> None:
    assert pattern_of(torch.ones(16, 16, 3, 3)) is None


def test_a_chance_zero_does_not_hide_the_pattern() -> None:
    torch.manual_seed(2)
    weight = masked(torch.randn(32, 64, 3, 3), "1x4", 0.7)
    weight.view(-1)[weight.flatten().abs().argmax()] = 0
    assert pattern_of(weight) == "1x4"
    with pytest.raises(ValueError, match=r"1x4 prunes whole blocks, found 3 nonzeros of 4 at output channels"):
        check_mask(weight, "1x4")


def test_channels_that_fit_no_block_are_unstructured() -> None:
    weight = torch.randn(6, 3, 3, 3)
    weight[0, 0] = 0
    assert pattern_of(weight) == "unstructured"


def test_check_mask_says_where() -> None:
    weight = torch.ones(16, 8, 3, 3)
    weight[:, ::2] = 0
    check_mask(weight, "2:4")
    weight[5, 4, 1, 2] = 1
    with pytest.raises(
        ValueError, match=r"found 3 at output channels 5 to 5, input channels 4 to 7, kernel position \(1, 2\)"
    ):
        check_mask(weight, "2:4")


def test_two_of_four_along_the_wrong_dimension() -> None:
    weight = torch.ones(8, 16, 3, 3)
    weight[::2] = 0
    with pytest.raises(ValueError, match="2:4 along the output channels, accepted is along the input channels"):
        check_mask(weight, "2:4")


@pytest.mark.parametrize(
    ("shape", "pattern", "match"),
    [
        ((16, 6, 3, 3), "1x4", "1x4 needs input channels divisible by 4, given 16 and 6"),
        ((8, 8), "16x1", "output channels divisible by 16"),
        ((8, 8), "3x3", "pattern is '3x3', accepted are"),
        ((8, 8, 8), "1x4", r"weight has shape \(8, 8, 8\)"),
    ],
)
def test_check_mask_refuses_what_does_not_fit(shape: tuple[int, ...], pattern: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        check_mask(torch.ones(shape), pattern)
