"""Inputs of the PTX wrappers, what must come out by numpy products, and the file that holds what a device gave.

A vector is the call of a warp, or of a warpgroup: words in [32 or 128, n] and words out [32 or 128, m], uint32. Inputs
come from an integer generator and differ in every lane, so that a permuted fragment shows. Halves hold whole numbers of
at most 256: every sum is exact in float32 whatever its order, so outputs are compared to the bit.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).with_name("ptx_vectors.json")
LANES = np.arange(32)
GROUP, MEMBER = LANES // 4, LANES % 4  # a lane's place in its fragment
PAIRS = [(i, j) for i in range(4) for j in range(i + 1, 4)]  # what 2:4 may keep of four neighbours
BITS = {"int8": 8, "uint8": 8, "float16": 16, "bfloat16": 16}
Words = np.ndarray  # uint32


class Integers:
    """SplitMix64: the same integers with every version of every library."""

    def __init__(self, seed: int) -> None:
        self.state = seed

    def draw(self, low: int, high: int, *shape: int) -> np.ndarray:
        """Integers in [low, high), int64."""
        count = int(np.prod(shape))
        return np.array([low + self._next() % (high - low) for _ in range(count)], np.int64).reshape(shape)

    def _next(self) -> int:
        mask = (1 << 64) - 1
        self.state = (self.state + 0x9E3779B97F4A7C15) & mask
        z = ((self.state ^ (self.state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)


def encode(values: np.ndarray, dtype: str) -> np.ndarray:
    """[..., n] whole numbers as [..., n * bits / 32] words, the first in the lowest bits."""
    if dtype == "bfloat16":
        units = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    elif dtype == "float16":
        units = values.astype(np.float16).view(np.uint16)
    else:
        units = values.astype(np.int64).astype(np.uint8)
    return np.ascontiguousarray(units).view(np.uint32)


def sums(values: np.ndarray, dtype: str) -> np.ndarray:
    """Accumulators as words: int32, or float32 for the halves."""
    return values.astype(np.int32 if BITS[dtype] == 8 else np.float32).view(np.uint32)


def operands(
    dtype: str, depth: int, seed: int, rows: int = 16, columns: int = 8
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(weights [rows, depth], activations [columns, depth], sums [rows, columns]) for activations of `dtype`."""
    draw = Integers(seed).draw
    limits = {"uint8": (0, 256), "int8": (-128, 128)}.get(dtype, (-256, 257))
    weights = (-127, 128) if BITS[dtype] == 8 else (-256, 257)
    return draw(*weights, rows, depth), draw(*limits, columns, depth), draw(-(1 << 20), 1 << 20, rows, columns)


def a_fragment(weights: np.ndarray, dtype: str) -> Words:
    """[16, 32 bytes] as [32, 4]: rows g, g + 8, g, g + 8; the first and then the second 16 bytes."""
    words = encode(weights, "int8" if BITS[dtype] == 8 else dtype)  # [16, 8]
    return np.stack([words[GROUP + 8 * (i % 2), MEMBER + 4 * (i // 2)] for i in range(4)], axis=1)


def b_fragment(activations: np.ndarray, dtype: str) -> Words:
    """[8, 16 n bytes] as [32, n]: column g, bytes 16 i + 4 t."""
    words = encode(activations, dtype)
    return np.stack([words[GROUP, MEMBER + 4 * i] for i in range(words.shape[1] // 4)], axis=1)


def d_fragment(matrix: np.ndarray) -> np.ndarray:
    """[16, 8] as [32, 4]: rows g, g, g + 8, g + 8; columns 2 t and 2 t + 1."""
    return np.stack([matrix[GROUP + 8 * (i // 2), 2 * MEMBER + i % 2] for i in range(4)], axis=1)


def d_fragments(matrix: np.ndarray) -> np.ndarray:
    """[64, 8 n] as [128, 4 n]: 16 rows a warp, a fragment for each 8 columns."""
    rows = np.split(matrix, 4)
    return np.vstack([np.hstack([d_fragment(part) for part in np.hsplit(warp, warp.shape[1] // 8)]) for warp in rows])


def mma(dtype: str, seed: int) -> tuple[Words, Words]:
    w, x, c = operands(dtype, 32 * 8 // BITS[dtype], seed)
    given = [a_fragment(w, dtype), b_fragment(x, dtype), sums(d_fragment(c), dtype)]
    return np.hstack(given), sums(d_fragment(c + w @ x.T), dtype)


def mma_sp(dtype: str, selector: int, seed: int) -> tuple[Words, Words]:
    kept, x, c = operands(dtype, 64 * 8 // BITS[dtype], seed)
    kept, w, nibbles = _spread(kept, seed)
    given = [
        a_fragment(kept, dtype),
        b_fragment(x, dtype),
        _metadata(nibbles, dtype, selector),
        sums(d_fragment(c), dtype),
    ]
    return np.hstack(given), sums(d_fragment(c + w @ x.T), dtype)


def _spread(values: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of [rows, depth]: what is kept [rows, depth / 2], where it lies [rows, depth], its places [rows, depth / 4]."""
    rows, depth = values.shape
    kept = values[:, : depth // 2]
    pairs = np.array(PAIRS)[Integers(seed + 1).draw(0, 6, rows, depth // 4)]  # [rows, groups of four, 2]
    w = np.zeros((rows, depth // 4, 4), np.int64)
    np.put_along_axis(w, pairs, kept.reshape(rows, depth // 4, 2), axis=2)
    return kept, w.reshape(rows, depth), pairs[..., 0] + 4 * pairs[..., 1]


def _metadata(nibbles: np.ndarray, dtype: str, selector: int) -> Words:
    """[16, groups of four] as [32, 1]; halves leave the lanes that are not selected with other valid metadata."""
    place = 4 * np.arange(8, dtype=np.uint64)
    packed = lambda row: np.bitwise_or.reduce(row.astype(np.uint64) << place[: len(row)])  # noqa: E731
    words = np.zeros((32, 1), np.uint32)
    for lane in range(32):
        g, t = divmod(lane, 4)
        if BITS[dtype] == 8:  # a row has 16 groups; a word holds 8 of them
            words[lane] = packed(nibbles[g + 8 * (t % 2), 8 * (t // 2) : 8 * (t // 2) + 8])
        elif t // 2 == selector:  # a row has 8 groups; a word holds 4 of row g and 4 of row g + 8
            groups = slice(4 * (t % 2), 4 * (t % 2) + 4)
            words[lane] = packed(np.concatenate([nibbles[g, groups], nibbles[g + 8, groups]]))
        else:
            words[lane] = 0x44444444  # of each four, the first two
    return words


def wgmma(dtype: str, selector: int | None, seed: int) -> tuple[Words, Words]:
    """[64, 64] sums; the operands are the second half of their tiles' rows along K."""
    depth = (32 if selector is None else 64) * 8 // BITS[dtype]
    w, x, c = operands(dtype, depth, seed, 64, 64)
    kept, metadata = w, []
    if selector is not None:
        kept, w, nibbles = _spread(w, seed)
        metadata = [np.vstack([_metadata(rows, dtype, selector) for rows in np.split(nibbles, 4)])]
    weights = encode(kept, "int8" if BITS[dtype] == 8 else dtype)
    given = [_tile(weights, seed + 2), _tile(encode(x, dtype), seed + 3), *metadata, sums(d_fragments(c), dtype)]
    return np.hstack(given), sums(d_fragments(c + w @ x.T), dtype)


def _tile(rows: Words, seed: int) -> Words:
    """[64, n] as the second half of rows of 2 n words, swizzled: what each of 128 threads writes."""
    count, words = rows.shape
    full = np.hstack([Integers(seed).draw(0, 1 << 32, count, words).astype(np.uint32), rows])
    chunks = words // 2  # of 16 bytes, 4 or 8 in a row
    row = np.arange(count)[:, None]
    source = np.arange(chunks) ^ (row >> 1 & 3 if chunks == 4 else row & 7)
    return full.reshape(count, chunks, 4)[row, source].reshape(128, -1)


def ldmatrix(matrices: int, seed: int) -> tuple[Words, Words]:
    """Lane i's address is that of row i % 8 of matrix i / 8; the rows are shuffled."""
    memory = _words(seed, 4)
    row = np.argsort(Integers(seed + 1).draw(0, 1 << 40, 32), kind="stable")
    out = np.stack([memory[row[8 * i + GROUP], MEMBER] for i in range(matrices)], axis=1)
    return np.hstack([memory, row[:, None].astype(np.uint32)]), out


def cp_async(size: int, seed: int) -> tuple[Words, Words]:
    given = _words(seed, 2 * size // 4)
    return given, given[LANES ^ 1]


def _words(seed: int, count: int) -> Words:
    return Integers(seed).draw(0, 1 << 32, 32, count).astype(np.uint32)


VECTORS: dict[str, Callable[[], tuple[Words, Words]]] = {
    **{f"mma {dtype}": lambda dtype=dtype, i=i: mma(dtype, 100 + i) for i, dtype in enumerate(BITS)},
    **{
        f"mma_sp {dtype}": lambda dtype=dtype: mma_sp(dtype, 0, 200 + BITS[dtype] + len(dtype))
        for dtype in ("int8", "uint8")
    },
    **{
        f"mma_sp {dtype}, selector {selector}": lambda dtype=dtype, s=selector: mma_sp(
            dtype, s, 300 + len(dtype) + 10 * s
        )
        for dtype in ("float16", "bfloat16")
        for selector in (0, 1)
    },
    **{f"wgmma {dtype}": lambda dtype=dtype, i=i: wgmma(dtype, None, 700 + i) for i, dtype in enumerate(BITS)},
    **{f"wgmma_sp {dtype}": lambda dtype=dtype: wgmma(dtype, 0, 800 + len(dtype)) for dtype in ("int8", "uint8")},
    **{
        f"wgmma_sp {dtype}, selector {selector}": lambda dtype=dtype, s=selector: wgmma(dtype, s, 900 + len(dtype) + s)
        for dtype in ("float16", "bfloat16")
        for selector in (0, 1)
    },
    **{f"ldmatrix_x{n}": lambda n=n: ldmatrix(n, 500 + n) for n in (4, 2)},
    **{f"cp_async {size}": lambda size=size: cp_async(size, 600 + size) for size in (4, 8, 16)},
}


def wrong_words(got: Words, want: Words) -> str:
    """ "" where they are equal, else how many are not and the first of them."""
    different = np.argwhere(got != want)
    if not len(different):
        return ""
    lane, word = different[0]
    first = f"lane {lane} word {word}: {got[lane, word]:#x}, not {want[lane, word]:#x}"
    return f"{len(different)} of {got.size} words differ, first {first}"


def on_device(library: ctypes.CDLL, name: str, pointers: tuple[int, int], shapes: tuple[int, int]) -> None:
    """Run a vector on device memory; raises RuntimeError with CUDA's words."""
    library.ptx_vector.restype = ctypes.c_char_p
    given, out = (ctypes.c_void_p(pointer) for pointer in pointers)
    message = library.ptx_vector(name.encode(), *map(ctypes.c_int, shapes), given, out).decode()
    if message:
        raise RuntimeError(f"{name}: {message}")


Recorded = list[str] | str


def recorded(words: Words) -> Recorded:
    """A row of hexadecimal words for each lane of a warp; of the many words of a warpgroup, their SHA-256."""
    if len(words) == len(LANES):
        return [" ".join(f"{int(word):08x}" for word in lane) for lane in words]
    return hashlib.sha256(np.ascontiguousarray(words).tobytes()).hexdigest()


def differs(got: Words, entry: Recorded) -> str:
    """ "" where `got` is what was recorded, else what is not."""
    if isinstance(entry, str):
        return "" if recorded(got) == entry else "another SHA-256"
    return wrong_words(got, from_hex(entry))


def read() -> dict[str, Any]:
    """{source, vectors: name -> {in, out}, each as recorded} of the committed file."""
    return json.loads(FILE.read_text())


def as_json(source: str, outputs: dict[str, Recorded]) -> str:
    """The file. `source` names the device that gave the outputs."""
    vectors = {name: {"in": recorded(VECTORS[name]()[0]), "out": out} for name, out in outputs.items()}
    return json.dumps({"source": source, "vectors": vectors}, indent=0) + "\n"


def from_hex(lanes: list[str]) -> Words:
    return np.array([[int(word, 16) for word in lane.split()] for lane in lanes], np.uint32)
