"""Numbers drawn from (seed, epoch, index) alone: the same for any thread count, split over ranks, and after a resume.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, for Philox4x32-10, which
csrc/data/random.h has in C++; Black, Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002, for permutations by
a Feistel network that is walked until it ends inside the domain.
"""

from __future__ import annotations

import numpy as np

_MASK = 0xFFFFFFFF
_ROUNDS = 8
SUBSTITUTE_BLOCK = 1 << 16  # blocks below are the recipe's


def philox(seed: int, epoch: int, index: int, block: int) -> tuple[int, int, int, int]:
    """Four independent numbers in [0, 2^32)."""
    c0, c1, c2, c3 = index & _MASK, index >> 32, epoch, block
    k0, k1 = seed & _MASK, seed >> 32
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & _MASK, (a >> 32) ^ c3 ^ k1, a & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def uniform(bits: int) -> float:
    """In [0, 1), from 32 bits."""
    return bits * 2.0**-32


def below(bits: int, count: int) -> int:
    """In [0, count), from 32 bits."""
    return bits * count >> 32


def substitute(seed: int, epoch: int, index: int, attempt: int, count: int) -> int:
    """The sample of [0, count) that stands in for one that failed."""
    return below(philox(seed, epoch, index, SUBSTITUTE_BLOCK + attempt)[0], count)


class Permutation:
    """The shuffled order of one epoch, computed where it is asked for: no array, no start-up, any position at once.

    Args:
        count: of the samples.
        seed: of the loader.
        epoch: another order each.
    """

    def __init__(self, count: int, seed: int, epoch: int) -> None:
        self._count = count
        # Halves of `bits` bits each; the domain is the smallest such square that holds `count`.
        self._bits = max(1, (max(count - 1, 1).bit_length() + 1) // 2)
        # No sample has this index, so that these keys are not used otherwise.
        drawn = [philox(seed, epoch, (1 << 64) - 1, block) for block in range(_ROUNDS)]
        self._keys = [np.uint64(a << 32 | b) for a, b, _, _ in drawn]

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """The samples at some positions: int64 [N] to int64 [N]."""
        values = positions.astype(np.uint64)
        outside = np.ones(len(values), bool)
        while outside.any():
            values[outside] = self._encrypt(values[outside])
            outside = values >= self._count
        return values.astype(np.int64)

    def _encrypt(self, values: np.ndarray) -> np.ndarray:
        bits, mask = np.uint64(self._bits), np.uint64((1 << self._bits) - 1)
        left, right = values >> bits, values & mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        return left << bits | right


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer (Steele, Lea, Flood, 2014)."""
    with np.errstate(over="ignore"):
        x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        return x ^ x >> np.uint64(31)
