"""Resuming: exact after any batch, after kill -9, on another number of ranks; refused where it cannot be."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from tests.data.conftest import needs_native
from tests.data.images import write_folder
from torchaccel.data import Arrays, ImageFolder, Loader
from torchaccel.data.recipes import Step

IMAGES = np.random.default_rng(0).integers(0, 256, (41, 6, 5, 3), np.uint8)
LABELS = np.arange(41)


def labels_of(loader: Loader, most: int | None = None) -> list[int]:
    found: list[int] = []
    for number, (_, labels) in enumerate(loader, 1):
        found += labels.tolist()
        if number == most:
            break
    return found


@needs_native
@pytest.mark.parametrize("threads", [1, 3])
def test_resuming_after_any_batch_gives_the_rest_to_the_bit(
    source: ImageFolder, recipe: list[Step], threads: int
) -> None:
    def batches(loader: Loader) -> list[bytes]:
        return [images.numpy().tobytes() + labels.numpy().tobytes() for images, labels in loader]

    with Loader(source, 10, recipe, shuffle=True, seed=5, threads=2) as loader:
        loader.set_epoch(3)
        whole = batches(loader) + batches(loader)
    for taken in range(6):
        with Loader(source, 10, recipe, shuffle=True, seed=5) as first:
            first.set_epoch(3)
            for number, _ in enumerate(first):
                if number + 1 == taken:
                    break
            state = json.loads(json.dumps(first.state_dict())) if taken else None
        with Loader(source, 10, recipe, shuffle=True, seed=5, threads=threads, slots=2) as second:
            second.set_epoch(3) if state is None else second.load_state_dict(state)
            second.set_epoch(3)  # the same epoch, so that the cursor stays
            assert batches(second) + batches(second) == whole[taken:]


def test_an_iteration_that_waits_takes_the_epoch_it_is_told() -> None:
    """Lightning calls iter, then set_epoch of the loader's sampler, then next."""
    with Loader(Arrays(IMAGES, LABELS), 10, shuffle=True) as loader:
        epochs = [labels_of(loader) for _ in range(3)]
        waiting = iter(loader)
        loader.sampler.set_epoch(1)
        assert [i for _, labels in waiting for i in labels.tolist()] == epochs[1]
        assert labels_of(loader) == epochs[2]

        loader.set_epoch(1)
        assert labels_of(loader, 2) == epochs[1][:20]
        state = loader.state_dict()
        loader.load_state_dict(state)
        waiting = iter(loader)
        loader.set_epoch(1)  # the same epoch, so that the cursor stays
        assert next(waiting)[1].tolist() == epochs[1][20:30]
        loader.set_epoch(2)
        with pytest.raises(RuntimeError, match="this one is over"):
            next(waiting)


def test_the_state_is_small_and_tells_what_was_delivered() -> None:
    with Loader(Arrays(IMAGES, LABELS), 4, shuffle=True, slots=6) as loader:
        iterator = iter(loader)
        assert loader.state_dict()["cursor"] == 0
        for number in range(1, 4):
            next(iterator)
            state = loader.state_dict()
            assert state["cursor"] == 4 * number and len(json.dumps(state)) < 250


def test_from_one_rank_to_two_and_back_in_the_middle_of_an_epoch() -> None:
    source = Arrays(IMAGES, LABELS)
    with Loader(source, 6, shuffle=True, seed=2) as loader:
        whole = labels_of(loader)
    with Loader(source, 6, shuffle=True, seed=2) as loader:
        seen = labels_of(loader, 2)
        state = loader.state_dict()
    ranks = [Loader(source, 5, shuffle=True, seed=2, rank=rank, world=2) for rank in range(2)]
    for loader in ranks:
        loader.load_state_dict(state)
        seen += labels_of(loader, 1)
    states = [loader.state_dict() for loader in ranks]
    assert states[0] == states[1] and states[0]["cursor"] == 22
    with Loader(source, 8, shuffle=True, seed=2) as loader:
        loader.load_state_dict(states[0])
        seen += labels_of(loader)
    assert sorted(seen) == sorted(whole) and set(seen[:12]) == set(whole[:12]) and seen[22:] == whole[22:]
    for loader in ranks:
        loader.close()


def test_a_finished_epoch_resumes_with_the_next() -> None:
    with Loader(Arrays(IMAGES, LABELS), 6, shuffle=True) as loader:
        labels_of(loader)
        state, following = loader.state_dict(), labels_of(loader)
    with Loader(Arrays(IMAGES, LABELS), 6, shuffle=True) as other:
        other.load_state_dict(state)
        assert labels_of(other) == following


class Sometimes:
    """A source of which some samples cannot be read."""

    channels, shape = 3, (6, 5)

    def __len__(self) -> int:
        return 41

    def read(self, index: int) -> tuple[np.ndarray, int]:
        if index % 5 == 2:
            raise OSError("gone")
        return IMAGES[index], index


@pytest.mark.parametrize("on_error", ["skip", "substitute"])
def test_samples_that_fail_do_not_move_the_cursor(on_error: str) -> None:
    def make() -> Loader:
        return Loader(Sometimes(), 6, shuffle=True, seed=8, on_error=on_error)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with make() as loader:
            whole = labels_of(loader)
        for taken in (1, 3):
            with make() as first, make() as second:
                seen = labels_of(first, taken)
                second.load_state_dict(first.state_dict())
                assert seen + labels_of(second) == whole


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seed": 1}, "another seed: 1, accepted here is 0"),
        ({"shuffle": True}, "another shuffle"),
        ({"version": 99}, "another version: 99"),
        ({"length": 40}, "another number of samples"),
        ({"source": "else"}, "another source"),
        ({"cursor": 42}, "cursor 42 of 41 samples"),
        ({"cursor": -1}, "cursor -1"),
        ({"epoch": "0"}, "epoch '0'"),
        ({"more": 1}, "accepted is what state_dict returned"),
    ],
)
def test_a_state_of_something_else_is_refused(change: dict, message: str) -> None:
    with Loader(Arrays(IMAGES, LABELS), 4) as loader:
        with pytest.raises(ValueError, match=message):
            loader.load_state_dict(loader.state_dict() | change)


def test_sources_are_told_apart(tmp_path: Path) -> None:
    changed = IMAGES.copy()
    changed[0] += 1
    folders = [ImageFolder(write_folder(tmp_path / str(i), 3 + i)) for i in range(2)]
    moved = tmp_path / "moved"
    (tmp_path / "0").rename(moved)
    sources = [Arrays(IMAGES, LABELS), Arrays(changed, LABELS), Arrays(IMAGES, LABELS[::-1]), *folders]
    assert len({source.fingerprint() for source in sources}) == 5
    with Loader(sources[0], 4) as first, Loader(sources[1], 4) as second:
        with pytest.raises(ValueError, match="another source"):
            second.load_state_dict(first.state_dict())
    assert ImageFolder(moved).fingerprint() == folders[0].fingerprint()


# Writes each batch's hash, then the state after it, to a log; kills itself after some batches of the run.
KILLED = """
import hashlib, json, os, signal, sys
from torchaccel.data import HorizontalFlip, ImageFolder, Loader, Normalize, RandomResizedCrop
folder, log, batches = sys.argv[1], sys.argv[2], int(sys.argv[3])
loader = Loader(ImageFolder(folder), 5, [RandomResizedCrop(32), HorizontalFlip(), Normalize()], shuffle=True, seed=6)
lines = open(log).read().splitlines() if os.path.exists(log) else []
if lines:
    loader.load_state_dict(json.loads(lines[-1])["state"])
with open(log, "a") as out:
    while loader.state_dict()["epoch"] < 2:
        for images, labels in loader:
            found = hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
            out.write(json.dumps({"hash": found, "state": loader.state_dict()}) + "\\n")
            out.flush()
            batches -= 1
            if batches == 0:
                os.kill(os.getpid(), signal.SIGKILL)
"""


@needs_native
def test_kill_9_and_resume_is_an_uninterrupted_run(folder: Path, recipe: list[Step], tmp_path: Path) -> None:
    dice, log = random.Random(11), tmp_path / "log"
    kills = 0
    for _ in range(8):
        batches = dice.randint(3, 9)
        done = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(log), str(batches)], cwd=Path.cwd())
        kills += done.returncode == -signal.SIGKILL
        if done.returncode == 0:
            break
    assert done.returncode == 0 and kills >= 2
    whole = []
    with Loader(ImageFolder(folder), 5, recipe, shuffle=True, seed=6, threads=1) as loader:
        for _ in range(2):
            for images, labels in loader:
                whole.append(hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest())
    assert [json.loads(line)["hash"] for line in log.read_text().splitlines()] == whole
