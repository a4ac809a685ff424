"""What the bench_<op>.py files share: where they ran, options, and a table with a ratio against a named baseline.

Freed memory stays with the process: a fresh large output costs page faults, up to three times its convolution, that
say nothing of a kernel.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchaccel import _native
from torchaccel.measure import interleaved_ms

Step = Callable[[], object]
_CACHES = 96 << 20  # bytes; three times what a processor's share of its last cache tends to be
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # parameters of glibc's mallopt


def rotated(step: Callable[[Any], object], weights: Sequence[Any]) -> Step:
    """`step` of one of `weights` after the other, call by call."""
    turn = itertools.cycle(weights)
    return lambda: step(next(turn))


def _keep_freed_memory() -> bool:
    """Whether freed memory stays with the process from now on; glibc alone can be told to."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_M_MMAP_MAX, 0) == mallopt(_M_TRIM_THRESHOLD, 2**31 - 1) == 1


def environment() -> dict[str, str | int | None]:
    cpu = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    return {
        "cpu": cpu or platform.processor(),
        "isa": _native.isa(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cache": "warm",
    }


def child_environment() -> dict[str, str]:
    """The variables for other processes of a benchmark: they import the same torchaccel as this one."""
    paths = [str(Path(_native.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


class Bench:
    """Options of the command line, and the rows measured so far; `paths` are more options, by name, with their help."""

    def __init__(self, op: str, baseline: str, cold: bool = False, sweep: bool = False, **paths: str) -> None:
        """`cold`, `sweep`: whether the benchmark knows weights that lie in no cache, and a range of sparsities."""
        parser = argparse.ArgumentParser(description=f"Times {op} against {baseline}, in turns in one process.")
        parser.add_argument("--threads", type=int, default=torch.get_num_threads())
        parser.add_argument("--isa", choices=_native.isas_available(), help="force an instruction set")
        parser.add_argument("--seconds", type=float, default=0.3, help="per step and shape")
        parser.add_argument("--json", type=Path, help="write the rows to this file")
        for name, told in paths.items():
            parser.add_argument(f"--{name}", type=Path, help=told)
        if cold:
            parser.add_argument("--cold", action="store_true", help="weights out of cache")
        if sweep:
            parser.add_argument("--sweep", action="store_true", help="a range of sparsities")
        self.options = parser.parse_args()
        torch.set_num_threads(self.options.threads)
        if self.options.isa:
            _native.force_isa(self.options.isa)
        self.memory = "kept" if _keep_freed_memory() else "fresh"
        self.baseline, self.rows = baseline, list[dict]()
        print(f"{op}: {', '.join(f'{key} {value}' for key, value in self.environment().items())}; baseline: {baseline}")

    def environment(self) -> dict[str, str | int | None]:
        return environment() | {"cache": "cold weights" if self.copies(1) > 1 else "warm", "memory": self.memory}

    def copies(self, weight_bytes: int) -> int:
        """How many copies of a weight exceed the caches, with --cold; otherwise 1."""
        return 1 + _CACHES // weight_bytes if getattr(self.options, "cold", False) else 1

    def row(self, shape: str, work: float, unit: str, steps: dict[str, Step]) -> None:
        """Time `steps` (the first is the baseline) on one shape; `work` is what one call does, in 10^9 `unit`."""
        with torch.no_grad():
            times = interleaved_ms(list(steps.values()), self.options.seconds)
        cells = []
        for name, ms in zip(steps, times, strict=True):
            self.rows.append({"shape": shape, "step": name, "ms": ms, "ratio": times[0] / ms, "rate": work / ms * 1e3})
            cells.append(f"{name} {ms:8.4f} ms {times[0] / ms:6.2f}x {work / ms * 1e3:7.1f} {unit}")
        print(f"{shape:34s} " + " | ".join(cells), flush=True)

    def finish(self) -> None:
        if self.options.json:
            report = {"environment": self.environment(), "baseline": self.baseline, "rows": self.rows}
            self.options.json.write_text(json.dumps(report, indent=1))


# (H = W, C, O, kernel, stride): the convolutions of ResNet-50 and ResNet-18 on 224 x 224 images, at most once each.
RESNET: Sequence[tuple[int, int, int, int, int]] = (
    (56, 64, 64, 1, 1),
    (56, 64, 256, 1, 1),
    (56, 64, 64, 3, 1),
    (28, 128, 128, 3, 1),
    (28, 512, 128, 1, 1),
    (28, 256, 256, 3, 2),
    (14, 256, 256, 3, 1),
    (14, 1024, 256, 1, 1),
    (14, 256, 1024, 1, 1),
    (7, 512, 512, 3, 1),
    (7, 2048, 512, 1, 1),
)


def conv_name(n: int, size: int, c: int, o: int, kernel: int, stride: int) -> str:
    return f"N={n} {c}->{o} {size}x{size} {kernel}x{kernel}" + (f"/{stride}" if stride > 1 else "")


def prepacked_conv(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Step:
    """oneDNN's float32 convolution with ReLU over weights that it packed for this input, channels_last."""
    args = ([padding, padding], [stride, stride], [1, 1], 1)
    packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *args, list(x.shape))
    return lambda: torch.ops.mkldnn._convolution_pointwise(x, packed, bias, *args, "relu", [], "")


def eager_conv(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Step:
    weight = weight.contiguous(memory_format=torch.channels_last)
    return lambda: F.conv2d(x, weight, bias, stride, padding)
