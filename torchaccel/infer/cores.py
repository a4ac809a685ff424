"""The cores that this process may use, in an order in which neighbours share caches and memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

_TOPOLOGY = Path("/sys/devices/system/cpu")
_CGROUPS = Path("/sys/fs/cgroup")


def allowed() -> list[int]:
    """The numbers of the cores of this thread's affinity, by NUMA node, socket and physical core.

    Under torchrun a rank takes its share of them, unless someone gave it cores of its own.
    """
    if not hasattr(os, "sched_getaffinity"):
        return list(range(os.cpu_count() or 1))
    cores = sorted(os.sched_getaffinity(0), key=_place)
    ranks, rank = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    if ranks > 1 and os.sched_getaffinity(0) == os.sched_getaffinity(os.getppid()):
        return _share(cores, rank, ranks)
    return cores


def usable() -> int:
    """How many cores' worth of time this process may take: those allowed, or fewer by the quota of its cgroup."""
    quota = _quota()
    count = len(allowed())
    return count if quota is None else max(1, min(count, int(quota)))


def shares(workers: int, threads: int) -> list[list[int]] | None:
    """The cores of each worker, neighbours of each other; all of them to each where workers * threads are too many.

    None under a quota, which allows more cores than it gives time: everyone who took the first of them would collide.
    """
    cores = allowed()
    if usable() < len(cores) or not hasattr(os, "sched_setaffinity"):
        return None
    if workers * threads > len(cores):
        return [cores] * workers
    return [_share(cores, i, workers) for i in range(workers)]


def pin(cores: Sequence[int]) -> None:
    """Keep this thread, and those that it starts from now on, on these cores."""
    os.sched_setaffinity(0, cores)


def _share(cores: list[int], index: int, count: int) -> list[int]:
    """One of `count` runs of neighbours; where there are fewer cores than runs, one core, which others have too."""
    begin, end = index * len(cores) // count, (index + 1) * len(cores) // count
    return cores[begin : max(end, begin + 1)]


def _place(cpu: int) -> tuple[int, int, int, int]:
    folder = _TOPOLOGY / f"cpu{cpu}"
    node = next((int(path.name[4:]) for path in folder.glob("node[0-9]*")), 0)
    return node, _number(folder / "topology/physical_package_id"), _number(folder / "topology/core_id"), cpu


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _quota() -> float | None:
    """Cores' worth of time that the cgroup, version 2 or 1, gives; containers see theirs mounted as the root."""
    try:
        quota, period = (_CGROUPS / "cpu.max").read_text().split()
    except (OSError, ValueError):
        quota, period = (_word(_CGROUPS / f"cpu/cpu.cfs_{name}_us") for name in ("quota", "period"))
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(quota) and int(period) else None


def _word(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
