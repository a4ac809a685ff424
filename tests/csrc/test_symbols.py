"""The CPU library must not hold vector code that a machine without it could reach."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from torchaccel import _native

LIBRARY = Path(_native.status()["cpu"]["path"])
VECTOR = re.compile(r"%[yz]mm\d")

pytestmark = pytest.mark.skipif(shutil.which("objdump") is None, reason="binutils (nm, objdump) are not installed")


def tool(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def functions() -> dict[str, list[str]]:
    """Disassembly by symbol."""
    found: dict[str, list[str]] = {}
    body: list[str] = []
    for line in tool("objdump", "-d", "--no-show-raw-insn", str(LIBRARY)).splitlines():
        header = re.match(r"[0-9a-f]+ <(.+)>:$", line)
        if header:
            body = found.setdefault(header[1], [])
        else:
            body.append(line)
    return found


def test_no_weak_symbol_holds_vector_code(functions: dict[str, list[str]]) -> None:
    """The linker keeps one copy of a weak symbol: one compiled for AVX would serve every machine."""
    symbols = [line.split() for line in tool("nm", "--defined-only", str(LIBRARY)).splitlines()]
    weak = [parts[2] for parts in symbols if parts[1] in "WVwvu"]
    assert weak, "nm finds no weak symbol at all; is the library stripped?"
    guilty = [name for name in weak if any(VECTOR.search(line) for line in functions.get(name, []))]
    assert not guilty


def test_vector_code_is_inside_the_kernels(functions: dict[str, list[str]]) -> None:
    """Everything outside the anonymous namespaces of kernels_*.cpp is plain x86-64."""
    vector = {name for name, body in functions.items() if any(VECTOR.search(line) for line in body)}
    kernels = {name for name in vector if re.search(r"_GLOBAL__N_1", name)}
    assert len(kernels) > 20
    assert vector == kernels


def test_the_library_exports_only_its_switches() -> None:
    symbols = [line.split() for line in tool("nm", "-D", "--defined-only", str(LIBRARY)).splitlines()]
    exported = {parts[-1] for parts in symbols if parts[1] == "T"}
    assert exported == {"torchaccel_isa", "torchaccel_isas_available", "torchaccel_force_isa"}
