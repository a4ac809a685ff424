"""The choice of a tiling: it fits the device, and one more row never costs much more by the cost model."""

from __future__ import annotations

import ctypes
from itertools import pairwise

import pytest

from harness import compiled

# multiprocessors, bytes of shared memory, whether it multiplies by wgmma
H100, RTX_4090, A100 = (132, 227 << 10, 1), (128, 99 << 10, 0), (108, 163 << 10, 0)


def plan(rows: int, channels: int, k: int, device: tuple[int, int, int]) -> tuple[float, int, int, int]:
    """(expected cycles, tiling, blocks, whole tiles)."""
    function = compiled("products_matrix").library.plan
    function.restype = ctypes.c_double
    chosen = (ctypes.c_int64 * 3)()
    cycles = function(*map(ctypes.c_int64, (rows, channels, k, *device)), chosen)
    return cycles, *chosen


@pytest.mark.parametrize("channels, k", [(4096, 4096), (1024, 4096), (11008, 4096)])
@pytest.mark.parametrize("device", [H100, A100])
def test_cost_grows_with_rows_without_cliffs(channels: int, k: int, device: tuple[int, int, int]) -> None:
    costs = [plan(rows, channels, k, device)[0] for rows in range(1, 513)]
    for rows, (less, more) in enumerate(pairwise(costs), start=1):
        assert more >= less * 0.999, f"{rows + 1} rows are expected to be cheaper than {rows}"
        assert more <= less * 1.4, f"{rows + 1} rows are expected to take {more / less:.2f} times as long as {rows}"


def test_tiles_of_a_part_of_a_wave_are_shared() -> None:
    _, _, blocks, whole = plan(16, 256, 16384, H100)  # 4 bands would leave most of the device idle
    assert blocks > 64 and whole == 0
    _, _, blocks, whole = plan(8192, 8192, 8192, H100)
    assert blocks == 132 and whole > 1000


def test_what_does_not_fit_the_shared_memory_is_not_chosen() -> None:
    assert plan(8192, 8192, 8192, H100)[1] != plan(8192, 8192, 8192, RTX_4090)[1]
    assert plan(64, 64, 64, (1, 16 << 10, 1))[:2] == (-1.0, -1)
