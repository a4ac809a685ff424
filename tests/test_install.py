"""Real wheels: with build isolation, in pure Python, and where the compiler fails.

The trees built here carry one small kernel source in place of csrc/cpu, so that each wheel takes seconds.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
LINUX_X86 = sys.platform == "linux" and platform.machine() == "x86_64"
pytestmark = pytest.mark.install
compiled = pytest.mark.skipif(
    not LINUX_X86 or shutil.which("c++") is None, reason="kernels are built on Linux x86-64 with a C++ compiler"
)

KERNEL = """
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>

using torch::stable::Tensor;

extern "C" __attribute__((visibility("default"))) const char* torchaccel_isa() { return "planted"; }

static Tensor first(Tensor x, Tensor, std::optional<Tensor>, torch::headeronly::ScalarType) { return x; }

STABLE_TORCH_LIBRARY_IMPL(torchaccel, CPU, m) { m.impl("quantize_int8", TORCH_BOX(&first)); }
"""

USE = """
import json, torch
from torchaccel import _native, ops
from torchaccel.workflow.doctor import doctor

q, scale, zero_point = ops.quantize_int8_dynamic(torch.tensor([[1.0, -2.0, 0.0]]))
found = doctor()
print(json.dumps({
    "q": q.tolist(), "file": _native.__file__, "status": _native.status(), "isa": _native.isa(),
    "kernel": ops.has_kernel("quantize_int8", "cpu"), "doctor": found.to_dict(), "summary": found.summary(),
}))
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A source tree without build products, with the planted kernel."""
    at = tmp_path / "tree"
    at.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "CHANGELOG.md", "MANIFEST.in"):
        shutil.copy(ROOT / name, at)
    skip = shutil.ignore_patterns("__pycache__", "*.so", "_build_info.json")
    for name in ("_build", "torchaccel"):
        shutil.copytree(ROOT / name, at / name, ignore=skip)
    (at / "csrc/cpu").mkdir(parents=True)
    (at / "csrc/cpu/planted.cpp").write_text(KERNEL)
    return at


def wheel(tree: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "-v", "-w", "out", *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TORCHACCEL_")}
    return subprocess.run(
        command, cwd=tree, env=environment | variables, capture_output=True, text=True, timeout=300, check=False
    )


def unpack(tree: Path, built: subprocess.CompletedProcess[str]) -> tuple[str, Path]:
    """The wheel's name, and a folder with what it installs."""
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    (path,) = (tree / "out").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tree / "site")
    return path.name, tree / "site"


def use(site: Path) -> dict:
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", USE], cwd=site, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["file"].startswith(str(site)), "the wheel is under test, not the source tree"
    assert found["q"] == [[64, -127, 0]]
    return found


@compiled
def test_build_isolation_uses_the_installed_torch(tree: Path) -> None:
    built = wheel(tree)
    name, site = unpack(tree, built)
    assert name.endswith("-cp310-abi3-linux_x86_64.whl")
    fetched = re.findall(r"Installing collected packages: (.*)", built.stdout + built.stderr)
    assert len(fetched) == 1 and set(fetched[0].split(", ")) == {"setuptools", "ninja", "pybind11"}
    assert (site / "torchaccel/report/templates").is_dir()
    info = json.loads((site / "torchaccel/_build_info.json").read_text())
    assert info["torch"] == torch.__version__ and info["mode"] == "auto" and "cpu" not in info["reasons"]
    found = use(site)
    assert found["status"]["cpu"]["loaded"] and found["isa"] == "planted" and found["kernel"]
    serving = {(entry["op"], entry["device"]): entry["by"] for entry in found["doctor"]["ops"]}
    assert serving["quantize_int8", "cpu"] == "native" and serving["int8_linear", "cpu"] == "reference"


def test_pure_python(tree: Path) -> None:
    name, site = unpack(tree, wheel(tree, "--no-build-isolation", TORCHACCEL_BUILD="none"))
    assert name.endswith("-py3-none-any.whl")
    assert not list(site.rglob("*.so"))
    found = use(site)
    assert found["isa"] is None and not found["kernel"]
    assert {entry["by"] for entry in found["doctor"]["ops"]} == {"reference"}
    assert "reference on cpu for all ops: the install was told TORCHACCEL_BUILD=none" in found["summary"]


@compiled
def test_a_kernel_that_does_not_compile_leaves_a_pure_install_with_the_reason(tree: Path) -> None:
    (tree / "csrc/cpu/planted.cpp").write_text("#error planted")
    _, site = unpack(tree, wheel(tree, "--no-build-isolation"))
    found = use(site)
    assert not found["status"]["cpu"]["loaded"] and "the build failed" in found["status"]["cpu"]["reason"]
    assert "TORCHACCEL_BUILD=cpu" in found["summary"]


@compiled
def test_a_forced_kernel_that_does_not_compile_fails_the_install(tree: Path) -> None:
    (tree / "csrc/cpu/planted.cpp").write_text("#error planted")
    built = wheel(tree, "--no-build-isolation", TORCHACCEL_BUILD="cpu")
    assert built.returncode != 0 and "#error planted" in built.stdout + built.stderr


def test_a_forced_target_that_cannot_be_built_fails_with_the_reason(tree: Path) -> None:
    built = wheel(tree, "--no-build-isolation", TORCHACCEL_BUILD="cuda", CUDA_HOME=str(tree))
    assert built.returncode != 0
    assert "TORCHACCEL_BUILD=cuda, but the" in built.stdout + built.stderr


def test_an_editable_rebuild_removes_what_it_no_longer_builds(tree: Path) -> None:
    stale = tree / "torchaccel/_cpu.so"
    stale.write_bytes(b"from an earlier build")
    command = [sys.executable, "-m", "pip", "install", "-e", ".", "--no-deps", "--no-build-isolation", "--target", "at"]
    subprocess.run(command, cwd=tree, env=os.environ | {"TORCHACCEL_BUILD": "none"}, capture_output=True, check=True)
    assert not stale.exists() and (tree / "torchaccel/_build_info.json").exists()
