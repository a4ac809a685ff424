"""The rules of the house, read from the sources: who imports whom, who names the ops, who loads libraries."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "torchaccel"

# cli -> demo, lightning, infer -> workflow -> graph, compress -> nn -> ops -> _native. measure is a leaf that any may
# use, and data, tune and report stand beside the line, on _native and measure alone.
LEAVES = {"_native", "measure"}
BESIDE = {"data", "tune", "report"}
FACE = "the public face"  # torchaccel/__init__.py, which imports all but demo and cli, and lightning when asked
MAY_IMPORT = {
    "_native": set(),
    "measure": set(),
    **{name: LEAVES for name in BESIDE},
    "ops": LEAVES,
    "nn": LEAVES | {"ops"},
    "graph": LEAVES | {"ops", "nn"},
    "compress": LEAVES | {"ops", "nn"},
    "testing": LEAVES | {"ops", "nn"},
    "workflow": LEAVES | BESIDE | {"ops", "nn", "graph", "compress"},
    "infer": LEAVES | {"data", "workflow"},
    "lightning": LEAVES | BESIDE | {"compress", "workflow"},
    "demo": LEAVES | BESIDE | {FACE, "ops", "nn", "graph", "compress", "workflow"},
    "cli": LEAVES | BESIDE | {FACE, "ops", "nn", "graph", "compress", "workflow", "infer", "demo"},
}
LOADERS = {"load_library", "CDLL", "PyDLL", "LoadLibrary", "dlopen"}


def area(path: Path) -> str:
    """The part of the house that a file belongs to: `nn` for torchaccel/nn/x.py, `cli` for torchaccel/cli.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def areas_imported(source: str, package: str) -> Iterator[str]:
    """The parts of torchaccel that a module imports, anywhere in it; `package` is the one it lives in."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "torchaccel" and parts[1:2] != ["__version__"]:
                yield parts[1] if parts[1:] and parts[1] in MAY_IMPORT else FACE


def names_ops(source: str) -> bool:
    """Whether the code says `torch.ops.torchaccel` (or `ops.torchaccel`)."""
    return any(
        isinstance(node, ast.Attribute)
        and node.attr == "torchaccel"
        and (isinstance(node.value, ast.Attribute) and node.value.attr == "ops")
        for node in ast.walk(ast.parse(source))
    )


def loads_libraries(source: str) -> bool:
    """Whether the code loads a native library, by ctypes or by torch."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in LOADERS:
            return True
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] in ("ctypes", "cffi") for alias in node.names):
            return True
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("ctypes", "cffi"):
            return True
    return False


def foreign_includes(source: str, file: Path, csrc: Path) -> Iterator[str]:
    """The quoted includes of a file in csrc/X that lie neither in csrc/X nor in csrc/common."""
    own = csrc / file.relative_to(csrc).parts[0]
    for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', source, re.MULTILINE):
        found = next((folder / name for folder in (file.parent, csrc, own) if (folder / name).exists()), None)
        inside = found is not None and any(
            found.resolve().is_relative_to(at.resolve()) for at in (own, csrc / "common")
        )
        if not inside:
            yield name


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def identity(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", modules(), ids=identity)
def test_imports_run_one_way(path: Path) -> None:
    own = area(path)
    assert own in MAY_IMPORT, f"{own} has no place in the house; give it one in this test and in the docs"
    package = ".".join(path.relative_to(ROOT).parts[:-1])
    wrong = set(areas_imported(path.read_text(), package)) - MAY_IMPORT[own] - {own}
    assert not wrong, f"{own} may not import {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("path", modules(), ids=identity)
def test_only_ops_names_the_ops(path: Path) -> None:
    assert area(path) == "ops" or not names_ops(path.read_text()), "call the function of torchaccel.ops"


@pytest.mark.parametrize("path", modules(), ids=identity)
def test_only_native_loads_libraries(path: Path) -> None:
    assert area(path) == "_native" or not loads_libraries(path.read_text()), "ask torchaccel._native"


def test_kernel_sources_include_their_own_folder_and_common() -> None:
    csrc = ROOT / "csrc"
    files = [path for path in csrc.rglob("*") if path.suffix in (".cpp", ".h", ".inl", ".cu", ".cuh")]
    assert len(files) > 5
    wrong = [f"{identity(path)}: {name}" for path in files for name in foreign_includes(path.read_text(), path, csrc)]
    assert not wrong, wrong


@pytest.mark.parametrize(
    "source, found",
    [
        ("from torchaccel.workflow.gates import hold", {"workflow"}),
        ("from torchaccel import nn, __version__", {"nn"}),
        ("def f():\n    import torchaccel.report.report", {"report"}),
        ("from ..graph import trace", {"graph"}),
        ("from . import sibling", {"ops"}),
        ("import torchaccel as ta", {FACE}),
        ("from torchaccel import Sparsity, ops", {FACE, "ops"}),
        ("import torch.nn as nn", set()),
    ],
)
def test_the_reader_of_imports_sees(source: str, found: set[str]) -> None:
    assert set(areas_imported(source, "torchaccel.ops")) == found


def test_the_other_readers_see(tmp_path: Path) -> None:
    assert names_ops("torch.ops.torchaccel.int8_linear(a)") and not names_ops("from torchaccel.ops import int8_linear")
    assert loads_libraries("import ctypes") and loads_libraries("torch.ops.load_library(p)")
    assert not loads_libraries("from torchaccel import _native")
    for name in ("cpu/a.cpp", "cpu/a.h", "cuda/b.cuh", "common/c.h"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    source = (
        '#include "a.h"\n#include "common/c.h"\n#include "cuda/b.cuh"\n#include "../cuda/b.cuh"\n#include <vector>\n'
    )
    assert list(foreign_includes(source, tmp_path / "cpu/a.cpp", tmp_path)) == ["cuda/b.cuh", "../cuda/b.cuh"]
