"""The machine code of a CUDA library: each kernel's instructions, loops, registers and stack, by cuobjdump."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);")
_FUNCTION = re.compile(r"^\s+Function\s*:\s*(\S+)")
_ARCHITECTURE = re.compile(r"^arch = (\S+)")
_USAGE = re.compile(r"^ Function (\S+):\s*$")
_USED = ("REG", "STACK", "SHARED")
_COUNT = re.compile(r"(REG|STACK|SHARED):(\d+)")


@dataclass(frozen=True)
class Instruction:
    """One of a kernel's instructions: `opcode` with its modifiers, as in LDGSTS.E.BYPASS.128."""

    address: int
    opcode: str
    operands: str


@dataclass(frozen=True)
class Kernel:
    """A kernel as compiled for one architecture.

    `stack` is in bytes a thread, where registers do not suffice, `shared` in bytes a block, those of the launch apart.
    """

    name: str
    architecture: str
    registers: int
    stack: int
    shared: int
    instructions: tuple[Instruction, ...]

    def count(self, pattern: str) -> int:
        """How many instructions there are whose opcode matches from its start."""
        return _count(self.instructions, pattern)

    def in_main_loop(self, pattern: str) -> int:
        """`count` within the smallest loop that holds a matrix product, 0 without one."""
        loops = [
            [i for i in self.instructions if target <= i.address <= branch]
            for target, branch in _loops(self.instructions)
        ]
        return _count(min((loop for loop in loops if _count(loop, r"[IH]G?MMA\.")), key=len, default=[]), pattern)


def _count(instructions: tuple[Instruction, ...] | list[Instruction], pattern: str) -> int:
    return sum(re.match(pattern, each.opcode) is not None for each in instructions)


def _loops(instructions: tuple[Instruction, ...]) -> Iterator[tuple[int, int]]:
    """(first, last) address of each loop: a branch back."""
    for each in instructions:
        found = re.search(r"0x([0-9a-f]+)", each.operands) if each.opcode.startswith("BRA") else None
        if found is not None and int(found[1], 16) < each.address:
            yield int(found[1], 16), each.address


def tool(name: str) -> str | None:
    """Where cuobjdump or nvdisasm is: PyPI's nvidia-cuda-<name>, or on PATH."""
    try:
        files = importlib.metadata.files(f"nvidia-cuda-{name}") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    installed = [str(file.locate()) for file in files if file.name == name]
    return installed[0] if installed else shutil.which(name)


def kernels(library: Path) -> list[Kernel]:
    """All kernels of a shared library or object file, for each architecture that it holds machine code for."""
    code = _code(_cuobjdump("-sass", library))
    usage = _usage(_cuobjdump("-res-usage", library))
    names = _demangled({name for _, name in code})
    return [
        Kernel(names[name], architecture, *(usage[architecture, name][of] for of in _USED), tuple(body))
        for (architecture, name), body in code.items()
    ]


def _cuobjdump(option: str, library: Path) -> str:
    cuobjdump, nvdisasm = tool("cuobjdump"), tool("nvdisasm")
    if cuobjdump is None or nvdisasm is None:
        raise RuntimeError("sass: no cuobjdump and nvdisasm: `pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm`")
    path = os.pathsep.join([str(Path(nvdisasm).parent), os.environ.get("PATH", "")])  # cuobjdump starts nvdisasm
    done = subprocess.run(
        [cuobjdump, option, str(library)], capture_output=True, text=True, check=True, env=os.environ | {"PATH": path}
    )
    return done.stdout


def _code(text: str) -> dict[tuple[str, str], list[Instruction]]:
    found: dict[tuple[str, str], list[Instruction]] = {}
    architecture, body = "", []
    for line in text.splitlines():
        if match := _INSTRUCTION.match(line):
            body.append(Instruction(int(match[1], 16), match[2], match[3]))
        elif match := _FUNCTION.match(line):
            body = found[architecture, match[1]] = []
        elif match := _ARCHITECTURE.match(line):
            architecture = match[1]
    return found


def _usage(text: str) -> dict[tuple[str, str], dict[str, int]]:
    found: dict[tuple[str, str], dict[str, int]] = {}
    architecture, name = "", ""
    for line in text.splitlines():
        if match := _USAGE.match(line):
            name = match[1]
        elif match := _ARCHITECTURE.match(line):
            architecture = match[1]
        elif counts := _COUNT.findall(line):
            found[architecture, name] = {word: int(count) for word, count in counts}
    return found


def _demangled(names: set[str]) -> dict[str, str]:
    ordered = sorted(names)
    done = subprocess.run(["c++filt"], input="\n".join(ordered), capture_output=True, text=True, check=True)
    return dict(zip(ordered, done.stdout.splitlines(), strict=True))
