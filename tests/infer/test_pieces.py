"""The parts of workers: who takes the next batch, how values travel, which cores there are."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchaccel.infer import _tensors, cores
from torchaccel.infer._jobs import Job, Jobs


def test_an_idle_worker_gets_a_batch_before_one_that_has_some() -> None:
    jobs = Jobs(2)
    lanes = [jobs.enter(worker) for worker in (0, 0, 1, 1)]
    got: list[int] = []

    def put() -> int:
        """Which worker got the batch."""
        before = [lane.qsize() for lane in lanes]
        assert jobs.put(Job(()))
        got.append(next(i for i, lane in enumerate(lanes) if lane.qsize() > before[i]))
        return got[-1] // 2

    assert {put(), put()} == {0, 1}
    jobs.done(1)
    assert put() == 1
    jobs.done(1)
    jobs.done(0)
    assert put() == 0
    assert sorted(got) == [0, 1, 2, 3]
    jobs.close(drop=False)
    assert not jobs.put(Job(()))


def test_lanes_that_wait_learn_of_the_end() -> None:
    jobs = Jobs(1)
    lane = jobs.enter(0)
    thread = threading.Thread(target=lambda: taken.append(jobs.take(0)))
    taken: list[Job | None] = []
    thread.start()
    jobs.close(drop=False)
    thread.join(10)
    assert taken == [None] and lane.get(timeout=10) is None


def test_batches_wait_in_order_and_are_run_or_dropped_at_the_end() -> None:
    jobs, given = Jobs(1), [Job(()) for _ in range(3)]
    assert all(jobs.put(job) for job in given)
    assert jobs.take(0) is given[0]
    jobs.close(drop=False)
    assert jobs.take(0) is given[1]
    assert jobs.close(drop=True) == [given[2]] and jobs.take(0) is None


DTYPES = [torch.float32, torch.bfloat16, torch.uint8, torch.bool, torch.int64, torch.complex64]


@given(st.lists(st.tuples(st.lists(st.integers(0, 5), max_size=4), st.sampled_from(DTYPES), st.booleans())))
def test_tensors_of_every_shape_come_back_to_the_bit(kinds: list[tuple[list[int], torch.dtype, bool]]) -> None:
    tensors = [torch.randint(0, 2, shape).to(dtype) for shape, dtype, _ in kinds]
    tensors = [
        x.permute(tuple(reversed(range(x.dim())))) if kind[2] else x for x, kind in zip(tensors, kinds, strict=True)
    ]
    value = {"all": tensors, "text": "x"}
    header, parts = _tensors.split(value)
    places, size = _tensors.arrange(parts)
    region = torch.full((size,), 171, dtype=torch.uint8)
    _tensors.write(region, places, parts)
    back = _tensors.join(header, [_tensors.view(region, place) for place in places])
    assert back["text"] == "x" and len(header) < 200 + 10 * len(tensors)
    for x, y in zip(tensors, back["all"], strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape and torch.equal(x, y)
        assert x.numel() == 0 or x.stride() == y.stride()


def test_views_with_gaps_expanded_and_sparse_tensors_come_back_too() -> None:
    gaps, expanded = torch.arange(12.0).view(3, 4)[:, ::2], torch.ones(1, 2).expand(5, 2)
    sparse = torch.eye(3).to_sparse()
    conjugated = torch.tensor([1 + 2j]).conj()
    header, parts = _tensors.split([gaps, expanded, sparse, conjugated])
    places, size = _tensors.arrange(parts)
    region = _tensors.mapped(file := _tensors.shared_file(_tensors.room(size)))
    os.close(file)
    _tensors.write(region, places, parts)
    back = _tensors.join(header, [_tensors.view(region, place) for place in places])
    assert torch.equal(back[0], gaps) and torch.equal(back[1], expanded)
    assert torch.equal(back[2].to_dense(), torch.eye(3)) and back[3].item() == 1 - 2j


@pytest.mark.parametrize("size, expected", [(0, 4096), (1, 4096), (4096, 4096), (4097, 8192), (10**6, 1 << 20)])
def test_rooms_are_powers_of_two_from_a_page_on(size: int, expected: int) -> None:
    assert _tensors.room(size) == expected


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight logical cores: two nodes of two physical cores in turns, the second threads numbered 4 to 7."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(cores, "_TOPOLOGY", tmp_path)
    monkeypatch.setattr(cores, "_CGROUPS", tmp_path)
    for cpu in range(8):
        folder = tmp_path / f"cpu{cpu}"
        (folder / "topology").mkdir(parents=True)
        (folder / f"node{cpu % 2}").mkdir()
        (folder / "topology/physical_package_id").write_text("0\n")
        (folder / "topology/core_id").write_text(f"{cpu % 4}\n")
    return tmp_path


def test_neighbours_share_a_core_then_a_node(machine: Path) -> None:
    assert cores.allowed() == [0, 4, 2, 6, 1, 5, 3, 7] and cores.usable() == 8
    assert cores.shares(4, 2) == [[0, 4], [2, 6], [1, 5], [3, 7]]
    assert cores.shares(2, 3) == [[0, 4, 2, 6], [1, 5, 3, 7]]
    assert cores.shares(3, 2) == [[0, 4], [2, 6, 1], [5, 3, 7]]
    assert cores.shares(2, 8) == [cores.allowed()] * 2


@pytest.mark.parametrize(
    "files, count",
    [
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({}, 8),
    ],
)
def test_a_quota_counts_but_pins_nothing(machine: Path, files: dict[str, str], count: int) -> None:
    for name, text in files.items():
        (machine / name).parent.mkdir(exist_ok=True)
        (machine / name).write_text(text)
    assert cores.usable() == count
    assert (cores.shares(2, 1) is None) == (count < 8)


def test_ranks_of_one_machine_share_its_cores(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert cores.allowed() == [1, 5, 3, 7] and cores.usable() == 4
    assert cores.shares(2, 2) == [[1, 5], [3, 7]]
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)) if pid else {0, 1})
    assert cores.allowed() == [0, 1]  # the rank was given its own
