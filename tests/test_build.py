"""What an install decides to build, from platform, torch and compilers; and what it built here."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import pytest
import torch

from torchaccel import _native

ROOT = Path(__file__).parents[1]
LINUX_X86 = sys.platform == "linux" and platform.machine() == "x86_64"
linux_x86 = pytest.mark.skipif(not LINUX_X86, reason="kernels are built on Linux x86-64")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "_build" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.chdir(ROOT)
    for name in ("TORCHACCEL_BUILD", "CXX", "CUDA_HOME", "CUDA_PATH", "MAX_JOBS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("a build must not depend on a visible GPU"))
    return load("native")


@pytest.fixture
def toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like a CUDA toolkit, and a torch that looks as if it had CUDA."""
    for name in ("bin/nvcc", "include/cuda_runtime.h"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    return tmp_path


def names(plan: object) -> list[str]:
    """The kernel libraries of a plan."""
    extensions = plan.extensions  # type: ignore[attr-defined]
    return [extension.name for extension in extensions if extension.name != "torchaccel._data"]


def test_an_unknown_mode_is_refused(native: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHACCEL_BUILD", "gpu")
    with pytest.raises(SystemExit, match="TORCHACCEL_BUILD is 'gpu', accepted are auto, cpu, cuda, none"):
        native.plan()


def test_none_builds_nothing(native: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHACCEL_BUILD", "none")
    plan = native.plan()
    assert not plan.extensions and plan.error is None and "none" in plan.reasons["cpu"]


@linux_x86
def test_auto_builds_both_where_nvcc_and_a_cuda_torch_meet(native: ModuleType, toolkit: Path) -> None:
    assert names(native.plan()) == ["torchaccel._cpu", "torchaccel._cuda"]


@linux_x86
def test_auto_leaves_cuda_out_without_nvcc(native: ModuleType, toolkit: Path) -> None:
    (toolkit / "bin/nvcc").unlink()
    plan = native.plan()
    assert names(plan) == ["torchaccel._cpu"] and "nvcc was not found" in plan.reasons["cuda"] and plan.error is None


@linux_x86
def test_auto_leaves_cuda_out_beside_a_cpu_torch(
    native: ModuleType, toolkit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    plan = native.plan()
    assert names(plan) == ["torchaccel._cpu"] and "built without CUDA" in plan.reasons["cuda"]


@linux_x86
def test_auto_without_a_compiler_is_pure_python(native: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    plan = native.plan()
    assert not plan.extensions and plan.error is None and "no C++ compiler was found" in plan.reasons["cpu"]


@linux_x86
@pytest.mark.parametrize(
    "mode, variable, value, text",
    [
        ("cpu", "CXX", "no-such-compiler", "the cpu kernels cannot be built: no C\\+\\+ compiler was found"),
        ("cuda", "CUDA_HOME", "/no/such/folder", "the cuda kernels cannot be built: nvcc was not found"),
    ],
)
def test_a_forced_target_that_cannot_be_built_is_an_error(
    native: ModuleType, toolkit: Path, monkeypatch: pytest.MonkeyPatch, mode: str, variable: str, value: str, text: str
) -> None:
    monkeypatch.setenv("TORCHACCEL_BUILD", mode)
    monkeypatch.setenv(variable, value)
    assert re.search(f"TORCHACCEL_BUILD={mode}, but {text}", native.plan().error or "")


@pytest.mark.parametrize("system, machine", [("darwin", "arm64"), ("linux", "aarch64"), ("win32", "AMD64")])
def test_other_platforms_are_pure_python(
    native: ModuleType, monkeypatch: pytest.MonkeyPatch, system: str, machine: str
) -> None:
    monkeypatch.setattr(native.sys, "platform", system)
    monkeypatch.setattr(native.platform, "machine", lambda: machine)
    plan = native.plan()
    assert not plan.extensions and f"this is {system} {machine}" in plan.reasons["cpu"]


@linux_x86
def test_flags(native: ModuleType, toolkit: Path) -> None:
    for extension in native.plan().extensions:
        for flags in extension.extra_compile_args.values():
            assert not [flag for flag in flags if flag.startswith(("-march", "-std", "-ffast-math"))], flags
            of_torch = extension.name != "torchaccel._data"
            assert ("-DTORCH_TARGET_VERSION=0x020a000000000000" in flags) == of_torch
            assert any("-ffp-contract=off" in flag for flag in flags)


@linux_x86
def test_image_decoders_need_the_headers_of_libjpeg_turbo(native: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_DATA_HEADERS", b"#include <cstdio>\n")
    plan = native.plan()
    assert plan.extensions[-1].name == "torchaccel._data" and not plan.abi3, "a wheel for this Python alone"
    monkeypatch.setattr(native, "_DATA_HEADERS", b"#include <no_such_jpeglib.h>\n")
    for mode in ("auto", "cpu"):
        monkeypatch.setenv("TORCHACCEL_BUILD", mode)
        plan = native.plan()
        assert "torchaccel._data" not in [e.name for e in plan.extensions] and plan.abi3 and plan.error is None
        assert "libjpeg62-turbo-dev" in plan.reasons["data"]


def test_objects_older_than_a_header_are_made_again(native: ModuleType, tmp_path: Path) -> None:
    extension = native.cuda_extension("libtorchaccel_cuda")
    newest = max(os.path.getmtime(path) for path in extension.depends if path.endswith(".cuh"))
    old, new = (tmp_path / Path(source).with_suffix(".o") for source in extension.sources[:2])
    for made, time in ((old, newest - 1), (new, newest + 1)):
        made.parent.mkdir(parents=True, exist_ok=True)
        made.touch()
        os.utime(made, (time, time))
    native.forget_stale(extension, str(tmp_path))
    assert not old.exists() and new.exists()


@pytest.mark.parametrize("cores, gigabytes, expected", [(64, 16, 4), (2, 64, 2), (8, 1, 1)])
def test_jobs_fit_cores_and_memory(
    native: ModuleType, monkeypatch: pytest.MonkeyPatch, cores: int, gigabytes: int, expected: int
) -> None:
    monkeypatch.setattr(native.os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": gigabytes * 2**30 // 4096}
    monkeypatch.setattr(native.os, "sysconf", pages.__getitem__)
    monkeypatch.setattr(native.Path, "exists", lambda _: False)
    assert native.jobs() == expected


def test_the_backend_finds_torch_past_pips_overlay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = load("backend").torch_site_packages()
    assert found is not None and Path(found).samefile(Path(torch.__file__).parents[1])


def test_build_requirements_name_no_torch() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    requires = re.search(r"^requires = (\[.*\])$", text, re.MULTILINE)
    assert requires and "torch" not in requires[1].replace("torchaccel", "") and "ninja" in requires[1]


@linux_x86
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here")
def test_the_cpu_library_is_built_and_loaded() -> None:
    status = _native.status()["cpu"]
    assert status["loaded"], status["reason"]
    assert _native.isa() in _native.isas_available()


@linux_x86
@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm of binutils")
def test_the_cpu_library_needs_no_python_and_no_unstable_torch_symbols() -> None:
    path = _native.status()["cpu"]["path"]
    listed = subprocess.run(["nm", "-D", "--undefined-only", path], capture_output=True, text=True, check=True).stdout
    symbols = [line.split()[-1] for line in listed.splitlines()]
    assert symbols and not [name for name in symbols if name.startswith(("Py", "_Py"))]
    assert not [name for name in symbols if re.match(r"_ZN?K?(2at|3c10|5torch)", name)]


def test_forcing_an_unknown_instruction_set_is_refused() -> None:
    if not _native.status()["cpu"]["loaded"]:
        with pytest.raises(RuntimeError, match="the CPU kernels are not loaded"):
            _native.force_isa("scalar")
        return
    with pytest.raises(ValueError, match="name is 'mmx', accepted are scalar"):
        _native.force_isa("mmx")


def test_a_cuda_library_that_is_no_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = os.path.join(tempfile.gettempdir(), "no-such-library.so")
    monkeypatch.setenv("TORCHACCEL_CUDA_LIBRARY", missing)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(FileNotFoundError, match=r"TORCHACCEL_CUDA_LIBRARY is .*no-such-library"):
        _native._load_cuda()


def test_the_cuda_library_stays_out_beside_a_cpu_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    library = _native._load_cuda()
    assert not library.loaded and "built without CUDA" in (library.reason or "")


def test_a_library_that_does_not_load_is_said(tmp_path: Path) -> None:
    path = tmp_path / "_cpu.so"
    path.write_bytes(b"not a library")
    with pytest.warns(UserWarning, match="the cpu kernels do not load"):
        library = _native._load(path, "cpu")
    assert not library.loaded and "does not load" in (library.reason or "")
