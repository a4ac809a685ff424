"""Compiles CUDA kernels for the emulated machine of csrc/cuda/emulate, and runs them under its watch.

    kernels = compiled("quantize_int8")  # tests/csrc/cuda/quantize_int8.cpp: extern "C" functions
    for machine in MACHINES:
        kernels.run("quantize_tensor", b"f", x, output(q), scale, None, x.numel(), machine=machine)

Arguments become what C takes: a tensor the pointer to a copy that lies `apart`, an input, which nobody may write;
`output(tensor)` must be written, each byte exactly once, and never read; `workspace(tensor)` is written before it is
read; None is a null pointer, an int an int64_t, a float a float, a byte a char, a str a char*; what is of ctypes stays.
Tensors whose pointers are in structures are given by `buffers`, a name for each; let inputs among them lie `apart`.
Tensors must be dense and on the CPU; their addresses modulo 256 are what the kernel sees, so views test alignment. Each
is known to the machine by its place ("argument 3"). What the machine reports is raised as AssertionError with the line
of the kernel.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).parents[3]
CSRC = ROOT / "csrc/cuda"
CACHE = ROOT / "build/emulated"
COMMON = "-std=c++17 -g1 -ffp-contract=off -fPIC -fno-gnu-unique".split()  # each library is its own machine
# What an uninitialized variable holds is a pattern; the sanitizers' calls are answered by emulate/hooks.cpp.
KERNEL = (
    "-O1 -Wno-unknown-pragmas -ftrivial-auto-var-init=pattern "
    "-fsanitize=thread,alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero"
).split()
WATCHED = "-Wl,-Bsymbolic,--wrap=memcpy,--wrap=memmove,--wrap=memset"


@dataclass(frozen=True)
class Machine:
    """In which order threads and blocks run, whether asynchronous copies land as late or as early as they may.

    A launch of more `accesses` to memory than that is taken to be endless.
    """

    order: str = "forward"  # or reversed, random
    seed: int = 0
    early_copies: bool = False
    accesses: int = 1 << 31


MACHINES = (Machine(), Machine("reversed", early_copies=True), Machine("random", seed=1))


@dataclass(frozen=True)
class Buffer:
    tensor: Tensor
    kind: int  # of emulate_register


def output(tensor: Tensor) -> Buffer:
    return Buffer(tensor, 1)


def workspace(tensor: Tensor) -> Buffer:
    return Buffer(tensor, 2)


def apart(tensor: Tensor) -> Tensor:
    """A copy at the same address modulo 256, with 64 KB to either side that belong to nobody.

    What a kernel reads past its end is then no other buffer's, and reported.
    """
    assert _dense(tensor)
    size, margin = tensor.numel() * tensor.element_size(), 64 << 10
    memory = torch.empty(size + 2 * margin + 256, dtype=torch.uint8)
    start = margin + (tensor.data_ptr() - memory.data_ptr() - margin) % 256
    flat = memory[start : start + size].view(tensor.dtype)
    return flat.as_strided(tensor.shape, tensor.stride(), flat.storage_offset()).copy_(tensor)


Argument = Tensor | Buffer | int | float | bytes | str | ctypes.Structure | ctypes.Array | None


class Kernels:
    """A shim, compiled."""

    def __init__(self, library: Path) -> None:
        self.path = library
        self.library = ctypes.CDLL(str(library))
        self.library.emulate_report.restype = ctypes.c_char_p
        self.library.emulate_bank_conflicts.restype = ctypes.c_int64
        self.library.emulate_launches.restype = ctypes.c_int64

    def run(
        self,
        function: str,
        *arguments: Argument,
        machine: Machine = MACHINES[0],
        buffers: Mapping[str, Tensor | Buffer] | None = None,
    ) -> None:
        """Calls the shim's function; raises AssertionError with what the machine reports."""
        order = ("forward", "reversed", "random").index(machine.order)
        self.library.emulate_begin(*map(ctypes.c_int64, (order, machine.seed, machine.early_copies, machine.accesses)))
        for name, buffer in (buffers or {}).items():
            self._register(name, buffer)
        kept = [apart(each) if isinstance(each, Tensor) else each for each in arguments]
        getattr(self.library, function)(*[self._passed(i, each) for i, each in enumerate(kept)])
        report = self.library.emulate_report().decode()
        assert not report, f"{function} on {machine}: {self._with_lines(report)}"

    @property
    def bank_conflicts(self) -> int:
        """Extra passes that ldmatrix took in the last run: 0 for a good layout of shared memory."""
        return self.library.emulate_bank_conflicts()

    @property
    def launches(self) -> int:
        """Kernels launched in the last run."""
        return self.library.emulate_launches()

    def _register(self, name: str, given: Tensor | Buffer) -> ctypes.c_void_p:
        buffer = given if isinstance(given, Buffer) else Buffer(given, 0)
        tensor = buffer.tensor
        assert tensor.device.type == "cpu" and _dense(tensor), f"{name} is not a dense tensor on the CPU"
        pointer, size = ctypes.c_void_p(tensor.data_ptr()), tensor.numel() * tensor.element_size()
        self.library.emulate_register(pointer, ctypes.c_int64(size), ctypes.c_int64(buffer.kind), name.encode())
        return pointer

    def _passed(self, index: int, value: Argument) -> object:
        if isinstance(value, (Tensor, Buffer)):
            return self._register(f"argument {index}", value)
        if isinstance(value, bytes):
            return ctypes.c_char(value)
        if isinstance(value, str):
            return ctypes.c_char_p(value.encode())
        if isinstance(value, float):
            return ctypes.c_float(value)
        if isinstance(value, int):
            return ctypes.c_int64(value)
        return ctypes.c_void_p(None) if value is None else value

    def _with_lines(self, report: str) -> str:
        """The report with addresses as lines of the kernel's source, from the innermost call outwards."""

        def lines(match: re.Match[str]) -> str:
            command = ["addr2line", "-i", "-e", str(self.path), match[1]]
            found = subprocess.run(command, capture_output=True, text=True).stdout.split("\n")
            places = [place.split(" ")[0] for place in found if place and "/emulate/" not in place]
            return "at " + " < ".join(os.path.relpath(place, ROOT) for place in places)

        return re.sub(r"at \+(0x[0-9a-f]+)", lines, report) if shutil.which("addr2line") else report


def _dense(tensor: Tensor) -> bool:
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.numel() == 0 or extent == tensor.numel()


@cache
def compiled(name: str, csrc: Path = CSRC) -> Kernels:
    """tests/csrc/cuda/<name>.cpp on the kernels of `csrc` (a changed copy, say), from a cache if nothing changed."""
    return Kernels(_library(name, [Path(__file__).with_name(f"{name}.cpp")], KERNEL, csrc, [str(_machine()), WATCHED]))


@cache
def _machine() -> Path:
    """The machine is a library of its own, so that no code of the standard library is shared with watched kernels."""
    return _library("machine", sorted((CSRC / "emulate").glob("*.cpp")), ["-O2"], CSRC, ["-ldl"])


def _library(name: str, sources: list[Path], flags: list[str], csrc: Path, linked: list[str]) -> Path:
    compile_ = ["g++", *COMMON, *flags, f"-I{CSRC / 'emulate'}", f"-I{csrc}"]
    rules = _output([*compile_, "-MM", *map(str, sources)])
    files = {word for word in rules.replace("\\\n", " ").split() if not word.endswith(":")}
    key = hashlib.sha256(" ".join([*compile_, *linked]).encode())
    for file in sorted(files):
        key.update(Path(file).read_bytes())
    made = CACHE / f"{name}-{key.hexdigest()[:16]}.so"
    if made.exists():
        return made
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        objects = [f"{folder}/{source.stem}.o" for source in sources]
        for source, target in zip(sources, objects, strict=True):
            _output([*compile_, "-c", str(source), "-o", target])
        _output(["g++", "-shared", *objects, *linked, "-o", f"{folder}/library.so"])
        os.replace(f"{folder}/library.so", made)  # whole, whoever else makes it now
    return made


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
    return done.stdout
