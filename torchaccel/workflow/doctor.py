"""ta.doctor: what is installed, which kernel serves which op, why something is missing and what to do about it."""

from __future__ import annotations

import platform
import sys
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from torchaccel import __version__, _native, ops
from torchaccel.data import Decoder, decoder
from torchaccel.graph.cache import machine

DEVICES = ("cpu", "cuda")
_OLDEST_GPU = (8, 0)


@dataclass(frozen=True)
class Serving:
    """Who serves one op on one device: "native" or "reference", and why the reference does."""

    op: str
    device: str
    by: str
    reason: str | None = None


@dataclass(frozen=True)
class Doctor:
    """What `doctor` found; `summary()` is its text, `to_dict()` its JSON."""

    versions: dict[str, str | None]
    platform: str
    cpu: str
    threads: int
    isa_used: str | None
    isas_available: tuple[str, ...]
    gpus: tuple[dict[str, Any], ...]
    libraries: dict[str, dict[str, Any]]
    build: dict[str, Any]
    ops: tuple[Serving, ...]
    images: Decoder
    advice: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as `torchaccel doctor --json` prints it."""
        return asdict(self)

    def summary(self) -> str:
        """The text that `torchaccel doctor` prints."""
        isas = ", ".join(self.isas_available) or "none"
        facts = {
            "versions": ", ".join(f"{name} {version or 'none'}" for name, version in self.versions.items()),
            "platform": self.platform,
            "processor": f"{self.cpu}, {self.threads} threads",
            "instruction sets": f"{isas}; used: {self.isa_used or 'none'}",
            "GPUs": ", ".join(f"{gpu['name']} (sm_{gpu['capability'].replace('.', '')})" for gpu in self.gpus)
            or "none",
            "image decoder": f"{self.images.by} ({self.images.versions or self.images.reason})",
        }
        lines = [f"{name + ':':<18}{value}" for name, value in facts.items()]
        lines += ["", "kernel libraries"]
        for name, library in self.libraries.items():
            state = library["path"] if library["loaded"] else f"not loaded: {library['reason']}"
            lines.append(f"  {name:<6}{state}")
        lines += ["", "who serves each op"]
        width = max(len(serving.op) for serving in self.ops) + 2
        lines.append("  " + "op".ljust(width) + "".join(device.ljust(12) for device in DEVICES).rstrip())
        table = {(serving.op, serving.device): serving.by for serving in self.ops}
        for op in dict.fromkeys(serving.op for serving in self.ops):
            lines.append("  " + op.ljust(width) + "".join(table[op, device].ljust(12) for device in DEVICES).rstrip())
        reasons: dict[tuple[str, str], list[str]] = {}
        for serving in self.ops:
            if serving.reason is not None:
                reasons.setdefault((serving.device, serving.reason), []).append(serving.op)
        for (device, reason), names in reasons.items():
            which = "all ops" if len(names) == len(ops.names()) else ", ".join(names)
            lines.append(f"  reference on {device} for {which}: {reason}")
        lines += ["", "what to do"] + [f"  - {line}" for line in self.advice or ("nothing: all is well",)]
        return "\n".join(lines)


def doctor() -> Doctor:
    """Look at this machine and this install.

    Returns:
        A `Doctor`: versions, instruction sets, libraries, for each op and device whether a native kernel or the
        reference serves it and why, and what to do. Kernels are looked up in PyTorch's dispatcher itself.
    """
    libraries = _native.status()
    gpus = _gpus()
    return Doctor(
        versions={
            "torchaccel": __version__,
            "torch": torch.__version__,
            "CUDA of torch": torch.version.cuda,
            "Python": platform.python_version(),
        },
        platform=platform.platform(),
        cpu=machine(torch.device("cpu"))["device"],
        threads=torch.get_num_threads(),
        isa_used=_native.isa(),
        isas_available=_native.isas_available(),
        gpus=gpus,
        libraries=libraries,
        build=_native.build_info(),
        ops=tuple(_serving(op, device, libraries, gpus) for op in ops.names() for device in DEVICES),
        images=decoder(),
        advice=tuple(_advice(libraries, gpus, decoder())),
    )


def _gpus() -> tuple[dict[str, Any], ...]:
    if not torch.cuda.is_available():
        return ()
    found = []
    for index in range(torch.cuda.device_count()):
        capability = ".".join(map(str, torch.cuda.get_device_capability(index)))
        found.append({"name": torch.cuda.get_device_name(index), "capability": capability})
    return tuple(found)


def _too_old(gpus: tuple[dict[str, Any], ...]) -> list[str]:
    return [gpu["name"] for gpu in gpus if tuple(map(int, gpu["capability"].split("."))) < _OLDEST_GPU]


def _serving(op: str, device: str, libraries: dict[str, dict[str, Any]], gpus: tuple[dict[str, Any], ...]) -> Serving:
    if ops.has_kernel(op, device):
        old = _too_old(gpus) if device == "cuda" else []
        return Serving(op, device, "native", f"but the reference on {', '.join(old)}, too old a GPU" if old else None)
    if not libraries[device]["loaded"]:
        return Serving(op, device, "reference", libraries[device]["reason"])
    return Serving(op, device, "reference", "this version has no native kernel for it")


def _advice(libraries: dict[str, dict[str, Any]], gpus: tuple[dict[str, Any], ...], images: Decoder) -> list[str]:
    lines = []
    if not libraries["cpu"]["loaded"]:
        if sys.platform == "linux" and platform.machine() == "x86_64":
            lines.append(
                "for CPU kernels: install g++, then run "
                "`TORCHACCEL_BUILD=cpu pip install --force-reinstall --no-deps --no-build-isolation -v torchaccel` "
                "(from a checkout: `-e .` instead of the name), which shows why if it fails"
            )
        else:
            lines.append("kernels exist for Linux x86-64 only; here every op runs by its PyTorch reference")
    if torch.version.cuda is None:
        lines.append("for CUDA kernels: install a torch with CUDA, then torchaccel again where nvcc is found")
    elif not libraries["cuda"]["loaded"]:
        lines.append(
            f"for CUDA kernels: install the CUDA {torch.version.cuda} toolkit (nvcc on PATH or CUDA_HOME set) and then "
            "torchaccel again, or set TORCHACCEL_CUDA_LIBRARY to a library that `make cuda` built elsewhere"
        )
    if images.by != "native":
        stand_in = "" if images.by != "none" else "; or `pip install pillow simplejpeg`, which are slower"
        lines.append(f"for fast image loading: {images.reason}; then install torchaccel again{stand_in}")
    for name in _too_old(gpus):
        lines.append(
            f"{name} is older than compute capability 8.0: its int8 and sparse ops run by their PyTorch references"
        )
    return lines
