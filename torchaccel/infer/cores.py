"""The cores that this process may use, in an order in which neighbours share caches and memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

_TOPOLOGY = Path("/sys/devices/system/cpu")
_CGROUPS = Path("/sys/fs/cgroup")


def allowed() -> list[int]:
    """The numbers of the cores of this thread's affinity, by NUMA node, socket and physical core."""
    if not hasattr(os, "sched_getaffinity"):
        return list(range(os.cpu_count() or 1))
    return sorted(os.sched_getaffinity(0), key=_place)


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
    return [cores[i * len(cores) // workers : (i + 1) * len(cores) // workers] for i in range(workers)]


def pin(cores: Sequence[int]) -> None:
    """Keep this thread, and those that it starts from now on, on these cores."""
    os.sched_setaffinity(0, cores)


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
