"""How much memory a step takes, and how much there is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): the peak resident set becomes the current one
_GROUPS = (  # limit and use of a container: cgroup v2, v1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


class Meter:
    """Peaks of memory on a device above what was taken when the meter was made, in bytes; None where nobody tells."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._base = self._taken()

    def peak(self, step: Callable[[], object]) -> int | None:
        """Run a step; returns how much memory was taken at most meanwhile."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            step()
            return torch.cuda.max_memory_allocated(self._device) - self._base
        try:
            _CLEAR.write_text(_RESET_PEAK)
        except OSError:
            step()
            return None
        step()
        return max(_status("VmHWM") - self._base, 0)

    def _taken(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.memory_allocated(self._device)
        return _status("VmRSS") if _STATUS.exists() else 0


def free(device: torch.device) -> int | None:
    """How many bytes a step may take on a device, or None where nobody tells."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    try:
        found = [_field(Path("/proc/meminfo").read_text(), "MemAvailable")]
    except OSError:
        return None
    for limit, used in _GROUPS:
        try:
            found.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such group, or no limit
            continue
    return max(min(found), 0)


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there was not enough memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _status(name: str) -> int:
    return _field(_STATUS.read_text(), name)


def _field(text: str, name: str) -> int:
    """Bytes of a line such as `VmHWM:   1234 kB`."""
    line = next(line for line in text.splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
