"""Each PTX wrapper on fixed inputs: the emulator, the committed outputs and numpy's own products agree to the bit.

`gpu_check.py --record JSON` makes the outputs that a GPU gave the committed ones; until then they are the emulator's,
and the file says so. To write those anew: `python tests/csrc/cuda/test_ptx_vectors.py`.
"""

from __future__ import annotations

import ctypes
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import ptx_vectors
from harness import CSRC, MACHINES, Machine, compiled, output
from ptx_vectors import VECTORS, Words, differs, recorded, wrong_words

emulates = pytest.mark.skipif(shutil.which("g++") is None, reason="the emulation needs g++")


def emulated(name: str, machine: Machine = MACHINES[0]) -> Words:
    """What the emulated warp gives for a vector."""
    given, want = VECTORS[name]()
    out = torch.empty(want.shape, dtype=torch.int32)
    shapes = given.shape[1], want.shape[1]
    words = torch.from_numpy(given.view(np.int32))
    compiled("ptx_vectors").run(
        "ptx_vector", ctypes.c_char_p(name.encode()), *shapes, words, output(out), machine=machine
    )
    return out.numpy().view(np.uint32)


@emulates
@pytest.mark.parametrize("name", VECTORS)
def test_the_emulator_computes_numpys_product(name: str) -> None:
    for machine in MACHINES:
        assert not wrong_words(emulated(name, machine), VECTORS[name]()[1])


@pytest.mark.parametrize("name", VECTORS)
def test_the_committed_outputs(name: str) -> None:
    entry = ptx_vectors.read()["vectors"][name]
    made, want = VECTORS[name]()
    assert not differs(made, entry["in"]), "the inputs in the file are not those that ptx_vectors.py makes"
    assert not differs(want, entry["out"])


def test_the_file_says_where_its_outputs_come_from() -> None:
    file = ptx_vectors.read()
    assert file["vectors"].keys() == VECTORS.keys()
    assert file["source"] == "emulator" or re.fullmatch(r"NVIDIA .+, driver [\d.]+", file["source"])


def test_every_wrapper_has_a_vector() -> None:
    wrappers = set(re.findall(r"__device__ inline \S+ (\w+)\(", (CSRC / "ptx.cuh").read_text()))
    called = set(re.findall(r"ptx::(\w+)", Path(__file__).with_name("ptx_vectors.cuh").read_text()))
    assert len(wrappers) > 14 and wrappers <= called | {"shared_address", "pin"}


def test_lanes_differ_and_a_swap_shows() -> None:
    for name, make in VECTORS.items():
        given, want = make()
        assert len(np.unique(given, axis=0)) == len(given), name
        swapped = want[np.arange(len(want)) ^ 1]
        assert wrong_words(swapped, want) and differs(swapped, recorded(want)), name
    assert wrong_words(np.array([[1], [2]], np.uint32), np.array([[1], [3]], np.uint32)).startswith(
        "1 of 2 words differ"
    )


def test_the_file_holds_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = {name: recorded(make()[1]) for name, make in VECTORS.items()}
    monkeypatch.setattr(ptx_vectors, "FILE", tmp_path / "vectors.json")
    ptx_vectors.FILE.write_text(ptx_vectors.as_json("NVIDIA H100, driver 580.1", outputs))
    file = ptx_vectors.read()
    assert file["source"] == "NVIDIA H100, driver 580.1"
    assert {name: entry["out"] for name, entry in file["vectors"].items()} == outputs


if __name__ == "__main__":
    ptx_vectors.FILE.write_text(ptx_vectors.as_json("emulator", {name: recorded(emulated(name)) for name in VECTORS}))
