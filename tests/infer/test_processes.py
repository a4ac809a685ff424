"""Worker processes that die, that cannot start, and whose parent is interrupted or killed; nothing is left behind."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import as_completed
from contextlib import suppress
from itertools import islice
from pathlib import Path

import pytest
import torch

import torchaccel as ta
from tests.infer.modules import Failing, Probe, build
from tests.models import settled
from torchaccel.infer import WorkerDied, Workers

ROOT = Path(__file__).parents[2]
# Prints the pids of the workers, then lets one run a batch that does not end.
SCRIPT = """
import os, signal, torch
from tests.infer.modules import Probe
from torchaccel.infer import Workers

if __name__ == "__main__":
    with Workers(Probe().eval(), workers=2, threads=1, processes=True) as workers:
        print(*(worker.process.pid for worker in workers._crew), flush=True)
        sleeping = workers.submit(torch.tensor([-4.0]))
        try:
            list(workers.map([torch.tensor([float(word)]) for word in (1, -4)]))
        finally:
            print("ended", flush=True)
"""


def shared_memory() -> int:
    """Mappings of memory that is shared with worker processes."""
    return Path("/proc/self/maps").read_text().count("memfd:torchaccel")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for_the_end(pids: list[int], seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(alive, pids))


def word(value: int) -> torch.Tensor:
    return torch.tensor([float(value)])


def test_a_killed_process_fails_all_that_waits_at_once_and_is_named() -> None:
    mapped = shared_memory()
    with Workers(Probe().eval(), workers=2, threads=1, processes=True) as workers:
        pids = [worker.process.pid for worker in workers._crew]
        sleeping = workers.submit(word(-4))
        killed = workers.submit(word(-2))
        waiting, each = [], None
        with suppress(WorkerDied):  # from then on
            for i in range(1000):
                waiting.append(workers.submit(word(i)))
        with pytest.raises(WorkerDied, match=r"worker process \d \(pid \d+\) was killed by SIGKILL, .* it ran a batch"):
            killed.result(30)
        # One may lie in the other lane of the process that sleeps, a few may have run before the other one died.
        for each in islice(as_completed(waiting, 30), len(waiting) - 1):
            assert each.exception() is None or isinstance(each.exception(), WorkerDied)
        assert len(waiting) < 1000 or isinstance(waiting[-1].exception(0), WorkerDied)
        with pytest.raises(WorkerDied, match="SIGKILL"):
            workers.submit(word(1))
        with pytest.raises(WorkerDied, match="SIGKILL"):
            next(workers.map([word(1)], on_error="yield"))
        crew = list(workers._crew)
        workers.close(cancel=True)
        assert all(worker.connection.closed for worker in crew)
        with pytest.raises(WorkerDied):
            sleeping.result(30)
    assert not any(map(alive, pids)) and multiprocessing.active_children() == []
    del workers, sleeping, killed, waiting, each, crew
    gc.collect()
    assert shared_memory() <= mapped


def test_a_checkpoint_gives_the_same_bits_in_an_idle_process_that_is_then_killed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model = settled(build())
    ta.quantize_(model, ta.Int8Dynamic())
    ta.save(model, path)
    x = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        expected = model(x)
    with Workers(path, build, workers=1) as threads:
        assert torch.equal(threads.submit(x).result(), expected)
    with Workers(path, build, workers=1, processes=True) as workers:
        ((_, outputs),) = workers.map([x])
        assert torch.equal(outputs, expected)
        os.kill(workers._crew[0].process.pid, signal.SIGKILL)
        with pytest.raises(WorkerDied, match="SIGKILL"):
            list(workers.map([x, x]))


def test_a_model_that_cannot_be_made_there_raises_what_it_raised() -> None:
    with pytest.raises(ValueError, match="no way back") as caught:
        Workers(Failing().eval(), workers=1, processes=True)
    assert "__setstate__" in str(caught.value.__cause__)
    assert multiprocessing.active_children() == []


def test_what_cannot_be_sent_is_refused_before_a_process_starts(tmp_path: Path) -> None:
    class Local(torch.nn.Module):
        pass

    path = tmp_path / "model.safetensors"
    ta.save(settled(build()), path)
    for model, model_fn in ((Local().eval(), None), (path, lambda: build())):
        with pytest.raises(ValueError, match=r"cannot be sent to a process, .* accepted are"):
            Workers(model, model_fn, workers=1, processes=True)
    with pytest.raises(FileNotFoundError, match="absent"):
        Workers(tmp_path / "absent", build, workers=1, processes=True)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent(how: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2 and all(map(alive, pids)) and parent.stdout.readline() == "asleep\n"
    if how == signal.SIGINT:
        os.killpg(parent.pid, how)  # as a terminal's Ctrl-C
        said, complaint = parent.communicate(timeout=60)
        assert "ended" in said and complaint.count("Traceback") == 1 and "KeyboardInterrupt" in complaint
    else:
        parent.kill()
        parent.wait()
    assert wait_for_the_end(pids)
