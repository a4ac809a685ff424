"""What a model costs beside its kernels: memory, and the time between operators; both on one image.

`python benchmarks/model_costs.py MODEL SIZE THREADS [CHECKPOINT]` prints the memory that a network takes in a process
of its own, as JSON: as it was built in float32, or as `ta.load` finds it in the checkpoint.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import torchaccel as ta
from _common import child_environment
from models import MODELS
from torchaccel import measure

MIB = 1 << 20


def _resident(field: str) -> float:
    """MiB of /proc/self/status: VmRSS, resident now, or VmHWM, the most since the last reset."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024 / MIB


def peak_mib(name: str, size: int, checkpoint: str | None) -> dict[str, float]:
    """How far resident memory grows over that of the imported libraries: up to the first result, and from then on.

    Both hold the weights; the first also what building, packing or compiling them takes for a while.
    """
    x = torch.randn(1, 3, size, size)
    torch.nn.functional.conv2d(x, torch.randn(4, 3, 3, 3))  # threads, and oneDNN's own tables
    before = _resident("VmRSS")
    with measure.inference():
        model = MODELS[name]().eval() if checkpoint is None else ta.load(checkpoint, MODELS[name])
        model(x)
        first = _resident("VmHWM")
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
        for _ in range(3):
            model(x)
    return {"loading": first - before, "running": _resident("VmHWM") - before}


def memory(model: nn.Module, name: str, size: int, folder: Path) -> dict[str, Any]:
    """Peaks in MiB at batch 1 of an optimized model and of the same network in eager float32, each in a process."""
    ta.save(model, folder / "model.safetensors")
    found = {}
    for form, given in (("eager float32", []), ("torchaccel", [str(folder / "model.safetensors")])):
        command = [sys.executable, __file__, name, str(size), str(torch.get_num_threads()), *given]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=child_environment())
        found[form] = json.loads(done.stdout)
    return {"unit": "MiB of resident memory beyond the libraries, batch 1", **found}


class Recorder(TorchDispatchMode):
    """Keeps the operators that are called, with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable, tuple, dict]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def overhead(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, float]:
    """Milliseconds of one call, and the share of it that is spent outside of operators: in modules and in Python.

    The other part is what the operators of one call take, called again one after the other with the same arguments;
    both are timed in turns.
    """
    with measure.inference():
        model(*inputs)  # a chain's first call for a size makes its plan
        with Recorder() as recorder:
            model(*inputs)

        def operators() -> None:
            for func, args, kwargs in recorder.calls:
                func(*args, **kwargs)

        ms, within = measure.interleaved_ms([lambda: model(*inputs), operators], max_rounds=501)
    return {"ms": ms, "outside_share": 1 - within / ms}


def main() -> None:
    name, size, threads, *checkpoint = sys.argv[1:]
    torch.set_num_threads(int(threads))
    print(json.dumps(peak_mib(name, int(size), checkpoint[0] if checkpoint else None)))


if __name__ == "__main__":
    main()
