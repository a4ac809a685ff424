"""Life and death: reads that raise or hang, Ctrl-C, breaks, exits, forks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from tests.data.conftest import needs_native
from tests.data.images import jpeg, picture
from torchaccel.data import Arrays, ImageFolder, Loader, Resize, SampleError

IMAGES = np.random.default_rng(0).integers(0, 256, (24, 6, 5, 3), np.uint8)


class Reads:
    """A source whose reads can raise, or wait until they are released."""

    channels, shape = 3, (6, 5)

    def __init__(self, raising: set[int] = frozenset(), hanging: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.raising, self.hanging, self.released = raising, hanging, threading.Event()

    def __len__(self) -> int:
        return 24

    def read(self, index: int) -> tuple[np.ndarray, int]:
        if index in self.raising:
            raise KeyError(f"no {index}")
        if index in self.hanging:
            self.released.wait(30)
        return IMAGES[index], index


def labels_of(loader: Loader) -> list[int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [label for _, labels in loader for label in labels.tolist()]


def loader_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def test_an_exception_in_read_is_that_samples_fault() -> None:
    with Loader(Reads(raising={5}), 4) as loader:
        with pytest.raises(SampleError, match=r"sample 5 \(Reads 5\): KeyError: 'no 5'"):
            labels_of(loader)
    with Loader(Reads(raising={5, 6}), 4, on_error="skip") as loader:
        assert labels_of(loader) == [i for i in range(24) if i not in (5, 6)]
        assert [fault.index for fault in loader.faults] == [5, 6]


@pytest.mark.parametrize("on_error", ["raise", "skip", "substitute"])
def test_a_read_that_hangs(on_error: str) -> None:
    source = Reads(hanging={3, 9, 10})
    with Loader(source, 4, on_error=on_error, timeout=0.2, threads=2, slots=8) as loader:
        if on_error == "raise":
            with pytest.raises(SampleError, match=r"sample 3 .*the read took longer than 0.2 s"):
                labels_of(loader)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                kept = [(images, images.clone(), labels) for images, labels in loader]
            found = [label for *_, labels in kept for label in labels.tolist()]
            good = [i for i in range(24) if i not in source.hanging]
            assert len(found) == (21 if on_error == "skip" else 24) and set(good) <= set(found)
            assert {fault.index for fault in loader.faults} == source.hanging
            source.released.set()  # late reads come back, and must not write anywhere
            time.sleep(0.1)
            assert all(np.array_equal(images.numpy(), copy.numpy()) for images, copy, _ in kept)


def test_threads_whose_read_hung_are_replaced_and_go() -> None:
    before = loader_threads()
    source = Reads(hanging={1, 2})
    with Loader(source, 4, on_error="skip", timeout=0.1, threads=2) as loader:
        labels_of(loader)
        assert len(labels_of(loader)) == 22
        source.released.set()
        assert len(labels_of(loader)) == 24
    deadline = time.monotonic() + 5
    while loader_threads() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert loader_threads() <= before


@needs_native
@pytest.mark.parametrize("kind", ["native", "python"])
def test_a_thousand_breaks_leave_threads_and_descriptors_as_they_were(source: ImageFolder, kind: str) -> None:
    with Loader(Arrays(IMAGES) if kind == "native" else Reads(), 2, slots=3, threads=2) as loader:
        found = set()
        for number in range(1000):
            for _ in loader:
                break
            if number % 100 == 9:
                found.add((loader_threads(), len(os.listdir("/proc/self/fd"))))
        assert len(found) == 1
        assert loader._ring is not None and loader._ring.made <= 3
    assert len(labels_of(loader)) == 24, "a loader that was closed starts again"


def run(code: str, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )


LIVE = """
import sys
from torchaccel.data import ImageFolder, Loader, Normalize, RandomResizedCrop
loader = Loader(ImageFolder(sys.argv[1]), 4, [RandomResizedCrop(64), Normalize()])
iterator = iter(loader)
next(iterator)

class Slow:
    channels, shape = 3, None
    def __len__(self): return 8
    def read(self, index):
        import time
        time.sleep(1000 if index == 7 else 0)
        return open(loader.source.paths[index], "rb").read()

own = Loader(Slow(), 2, [RandomResizedCrop(64)], threads=3)
other = iter(own)
next(other)
print("leaving")
"""


@needs_native
def test_the_process_ends_with_loaders_alive_and_a_read_that_hangs(folder: Path) -> None:
    done = run(LIVE, str(folder))
    assert (done.returncode, done.stdout, done.stderr) == (0, "leaving\n", "")


FORKED = """
import os, sys
from torchaccel.data import ImageFolder, Loader, Resize
loader = Loader(ImageFolder(sys.argv[1]), 8, [Resize((8, 8))])
whole = [images.sum().item() for images, _ in loader]
iterator = iter(loader)
next(iterator)
child = os.fork()
if child == 0:
    try:
        next(iterator)
    except RuntimeError as error:
        assert "parent process" in str(error), error
        loader.set_epoch(0)
        again = [images.sum().item() for images, _ in loader]
        loader.close()
        os._exit(0 if again == whole else 3)
    os._exit(4)
_, status = os.waitpid(child, 0)
rest = [images.sum().item() for images, _ in iterator]
print(os.waitstatus_to_exitcode(status), rest == whole[1:])
"""


@needs_native
def test_a_fork_leaves_the_parent_alone_and_the_child_starts_its_own_threads(folder: Path) -> None:
    done = run(FORKED, str(folder))
    assert done.stdout == "0 True\n", done.stdout + done.stderr


INTERRUPTED = """
import signal, sys, time
from torchaccel.data import ImageFolder, Loader, Normalize, RandomResizedCrop

class Stuck:
    channels, shape = 3, (4, 4)
    def __len__(self): return 8
    def read(self, index): time.sleep(1000)

if sys.argv[1] == "hangs":
    loader = Loader(Stuck(), 2)
else:
    loader = Loader(ImageFolder(sys.argv[2]), 48, [RandomResizedCrop(1000), Normalize()], threads=1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start without it
print("ready", flush=True)
try:
    while True:
        for batch in loader:
            pass
except KeyboardInterrupt:
    loader.close()
    print(time.monotonic())
"""


@needs_native
@pytest.mark.parametrize("what", ["hangs", "works"])
def test_ctrl_c_ends_the_loader_within_a_second(what: str, folder: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, what, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    time.sleep(0.3)
    sent = time.monotonic()
    child.send_signal(signal.SIGINT)
    try:
        ended, errors = child.communicate(timeout=30)
    finally:
        child.kill()
    assert child.returncode == 0 and not errors, errors
    assert float(ended) - sent < 1.0  # both clocks are the system's


@needs_native
def test_native_samples_that_come_too_late_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(picture(20, 20)))
    slow = np.random.default_rng(0).integers(0, 256, (2500, 2500, 3), np.uint8)
    (tmp_path / "b.jpg").write_bytes(jpeg(slow, quality=98))
    with Loader(ImageFolder(tmp_path), 2, [Resize((16, 16))], threads=1, timeout=0.02) as loader:
        with pytest.raises(TimeoutError, match=r"after 0.02 s these samples are not there: 1 \(.*b.jpg\)$"):
            next(iter(loader))
