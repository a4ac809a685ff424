"""The generator's known answers, and that orders are permutations without a pattern."""

from __future__ import annotations

import numpy as np
import pytest

from tests.data.conftest import needs_native
from torchaccel.data import RandomCrop
from torchaccel.data._decode import fill_with
from torchaccel.data._random import Permutation, philox, substitute
from torchaccel.data._reference import choose_view
from torchaccel.data.recipes import compile_recipe


def test_philox_has_the_papers_answers() -> None:
    """The vectors that the authors' library Random123 is checked with."""
    assert philox(0, 0, 0, 0) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    ones = (1 << 64) - 1
    assert philox(ones, 0xFFFFFFFF, ones, 0xFFFFFFFF) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    pi = philox(0x299F31D0A4093822, 0x13198A2E, 0x85A308D3243F6A88, 0x03707344)
    assert pi == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


@needs_native
@pytest.mark.parametrize(
    "seed, epoch, index", [(0, 0, 0), (2**64 - 1, 2**32 - 1, 2**63), (12345678901234567890, 7, 99)]
)
def test_csrc_draws_the_same(seed: int, epoch: int, index: int) -> None:
    cut = compile_recipe([RandomCrop(1)], 3, None)
    pixels = np.arange(200 * 251 * 3, dtype=np.int64).reshape(200, 251, 3).astype(np.uint8)
    out = np.zeros((1, 3, 1, 1), np.uint8)
    fill_with("native")(cut, pixels, index, seed, epoch, out, 0)
    view = choose_view(cut, 251, 200, seed, epoch, index)
    assert out[0, :, 0, 0].tolist() == pixels[view.top, view.left].tolist()


@pytest.mark.parametrize("count", [1, 2, 3, 17, 64, 1000, 65537])
def test_each_epoch_is_a_permutation_of_its_own(count: int) -> None:
    positions = np.arange(count)
    orders = [Permutation(count, 3, epoch)(positions) for epoch in range(3)]
    for order in orders:
        assert np.array_equal(np.sort(order), positions)
    if count >= 17:
        assert not np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[0], positions)
        assert not np.array_equal(orders[0], Permutation(count, 4, 0)(positions))


def test_a_part_of_an_order_is_that_part() -> None:
    order = Permutation(1000, 1, 1)
    assert np.array_equal(order(np.arange(300, 340)), order(np.arange(1000))[300:340])


def test_orders_have_no_pattern() -> None:
    count = 4096
    order = Permutation(count, 0, 0)(np.arange(count))
    assert abs(np.corrcoef(np.arange(count), order)[0, 1]) < 0.05
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
    # Where sample 0 lands over many epochs is spread evenly: chi-squared of 16 bins, 99.9% below 37.7.
    places = np.array([np.argmin(Permutation(64, 0, epoch)(np.arange(64))) for epoch in range(800)])
    found = np.bincount(places // 4, minlength=16)
    assert ((found - 50) ** 2 / 50).sum() < 37.7


def test_substitutes_differ_by_attempt_and_stay_in_range() -> None:
    drawn = [substitute(1, 2, 3, attempt, 50) for attempt in range(40)]
    assert len(set(drawn)) > 15 and min(drawn) >= 0 and max(drawn) < 50
