"""Which native libraries an install builds, and how.

Two hold kernels, for CPU and for CUDA, on libtorch's stable ABI; the third is csrc/data, a Python module without torch.
"""

from __future__ import annotations

import glob
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from setuptools import Command, Extension
from setuptools.command.build import build as _build

MODES = ("auto", "cpu", "cuda", "none")
# Code for 8.0 runs on 8.6 and 8.9 as well. PTX goes with it: that of 9.0a would not run on later devices.
ARCHITECTURES = "8.0+PTX;9.0a"
INFO = "_build_info.json"
_STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # torch 2.10
# A JPEG library without this function is not libjpeg-turbo.
_DATA_HEADERS = b"#include <cstdio>\n#include <jpeglib.h>\n#include <png.h>\nauto crop = jpeg_crop_scanline;\n"
_CXX_FLAGS = ["-O3", "-g0", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unused-parameter"]


@dataclass
class Plan:
    """What to build; why the rest is not built; and, for a forced target that cannot be built, the error."""

    mode: str
    extensions: list[Extension] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    error: str | None = None

    @property
    def abi3(self) -> bool:
        """Whether there are libraries, all of which fit every Python."""
        return bool(self.extensions) and all(extension.py_limited_api for extension in self.extensions)

    def add(self, target: str, reason: str | None, forced: bool) -> None:
        if reason is None:
            made = {"cpu": cpu_extension, "cuda": lambda: cuda_extension("torchaccel._cuda"), "data": data_extension}
            self.extensions.append(made[target]())
            return
        self.reasons[target] = reason
        if forced:
            self.error = f"torchaccel: TORCHACCEL_BUILD={self.mode}, but the {target} kernels cannot be built: {reason}"


def plan() -> Plan:
    """Decide from TORCHACCEL_BUILD, the platform, torch and the compilers; never from a visible GPU."""
    mode = os.environ.get("TORCHACCEL_BUILD", "auto")
    if mode not in MODES:
        raise SystemExit(f"torchaccel: TORCHACCEL_BUILD is {mode!r}, accepted are {', '.join(MODES)}")
    made = Plan(mode)
    if mode == "none":
        made.reasons = dict.fromkeys(("cpu", "cuda", "data"), "the install was told TORCHACCEL_BUILD=none")
        return made
    made.add("cpu", missing_for_cpu(), forced=mode in ("cpu", "cuda"))
    if mode == "cpu":
        made.reasons["cuda"] = "the install was told TORCHACCEL_BUILD=cpu"
    else:
        made.add("cuda", missing_for_cuda(), forced=mode == "cuda")
    made.add("data", missing_for_data(), forced=False)  # not kernels, and Python decoders stand in
    return made


def missing_for_cpu() -> str | None:
    """Why the CPU kernels cannot be built here, or None."""
    return missing_for_any() or (None if _sources("cpu", "cpp") else "there are no sources in csrc/cpu")


def missing_for_data() -> str | None:
    """Why the image decoders cannot be built here, or None."""
    reason = missing_for_any() or (None if _sources("data", "cpp") else "there are no sources in csrc/data")
    if reason is not None:
        return reason
    if importlib.util.find_spec("pybind11") is None:
        return "pybind11 was not found beside this Python"
    compiler = os.environ.get("CXX", "c++").split()
    tried = subprocess.run([*compiler, "-fsyntax-only", "-x", "c++", "-"], input=_DATA_HEADERS, capture_output=True)
    if tried.returncode != 0:
        return "libjpeg-turbo's or libpng's headers were not found (Debian: libjpeg62-turbo-dev libpng-dev)"
    return None


def missing_for_any() -> str | None:
    """Why nothing can be built here, or None."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return f"kernels are built on Linux x86-64, this is {sys.platform} {platform.machine()}"
    if importlib.util.find_spec("torch") is None:
        return "no torch was found beside this Python; install torch first, then torchaccel again"
    try:
        import torch
    except Exception as error:
        return f"the installed torch does not import: {error}"
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 10):
        return f"torch {torch.__version__} is installed, the kernels need 2.10 or later"
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        return f"no C++ compiler was found ({compiler}); install g++ or set CXX"
    return None


def missing_for_cuda() -> str | None:
    """Why the CUDA kernels cannot be built and used beside the installed torch, or None."""
    reason = missing_for_cpu()
    if reason is not None:
        return reason
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    return missing_toolkit()


def missing_toolkit() -> str | None:
    """Why no .cu file can be compiled here, or None."""
    if cuda_home() is None:
        return "nvcc was not found; put it on PATH or set CUDA_HOME to the CUDA toolkit"
    if not _sources("cuda", "cu"):
        return "there are no sources in csrc/cuda"
    return None


def cuda_home() -> str | None:
    """The CUDA toolkit: CUDA_HOME or CUDA_PATH, the nvcc on PATH, or /usr/local/cuda."""
    given = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    found = shutil.which("nvcc")
    # The nvcc on PATH may be a link or a wrapper outside the toolkit, so a candidate must have the headers too.
    candidates = [given] if given else [*([str(Path(found).resolve().parents[1])] if found else []), "/usr/local/cuda"]
    for home in candidates:
        if Path(home, "bin", "nvcc").exists() and Path(home, "include", "cuda_runtime.h").exists():
            return home
    return None


def cpu_extension() -> Extension:
    """All of csrc/cpu as `torchaccel/_cpu.so`."""
    return _extension("torchaccel._cpu", "cpu", "cpp", {"cxx": [*_CXX_FLAGS, _STABLE_ABI]})


def cuda_extension(name: str) -> Extension:
    """All of csrc/cuda as one library that carries the CUDA runtime in itself and asks torch only for its stream."""
    home = cuda_home()
    host = [*_CXX_FLAGS, _STABLE_ABI, "-DUSE_CUDA"]
    device = ["-O3", "-Xcompiler=-fvisibility=hidden,-ffp-contract=off", _STABLE_ABI, "-DUSE_CUDA"]
    made = _extension(name, "cuda", "cu", {"cxx": host, "nvcc": device})
    made.include_dirs.append(f"{home}/include")
    made.library_dirs += [f"{home}/lib64", f"{home}/lib"]
    # torch_cuda holds the current stream; beside a CPU-only torch a stub of the same soname stands in at link time.
    made.libraries += ["torch_cuda", "cudart_static", "rt", "dl", "pthread"]
    made.extra_link_args.append("-Wl,--exclude-libs,ALL")
    return made


def data_extension() -> Extension:
    """All of csrc/data as the Python module `torchaccel/_data.so`."""
    import pybind11

    return Extension(
        "torchaccel._data",
        _sources("data", "cpp"),
        include_dirs=[os.path.abspath("csrc"), pybind11.get_include()],
        libraries=["jpeg", "png", "pthread"],
        depends=sorted(glob.glob("csrc/data/**", recursive=True)),
        extra_compile_args={"cxx": list(_CXX_FLAGS)},
        extra_link_args=["-Wl,--exclude-libs,ALL"],
        language="c++",
    )


def _extension(name: str, folder: str, ending: str, flags: dict[str, list[str]]) -> Extension:
    from torch.utils.cpp_extension import CppExtension

    return CppExtension(
        name,
        _sources(folder, ending),
        include_dirs=[os.path.abspath("csrc")],
        depends=sorted(glob.glob(f"csrc/{folder}/**", recursive=True) + glob.glob("csrc/common/**", recursive=True)),
        extra_compile_args=flags,
        extra_link_args=["-Wl,-z,defs"],
        py_limited_api=True,
    )


def _sources(folder: str, ending: str) -> list[str]:
    return sorted(glob.glob(f"csrc/{folder}/*.{ending}"))


def commands(made: Plan) -> dict[str, type[Command]]:
    """setuptools' commands: kernels that fail to build do not fail an install unless they were asked for."""
    info = type("build_info", (_BuildInfo,), {"plan": made})
    build = type("build", (_build,), {"sub_commands": [*_build.sub_commands, ("build_info", None)]})
    found: dict[str, type[Command]] = {"build": build, "build_info": info}
    if made.extensions:
        found["build_ext"] = build_ext_class(made)
    return found


def build_ext_class(made: Plan) -> type[Command]:
    """torch's BuildExtension, one library at a time, with bounded jobs and object files that are kept."""
    from torch.utils import cpp_extension

    # ninja comes with pip beside this Python, and is on PATH only in an activated environment.
    os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", "")

    class BuildKernels(cpp_extension.BuildExtension.with_options(no_python_abi_suffix=True)):
        def finalize_options(self) -> None:
            super().finalize_options()
            # pip gives each editable build a new folder; a kept one lets ninja compile only what changed.
            self.build_temp = os.path.abspath(os.path.join("build", "temp"))

        def build_extensions(self) -> None:
            built, wanted = [], self.extensions
            os.environ.setdefault("MAX_JOBS", str(jobs()))
            for extension in wanted:
                self.extensions = [extension]
                try:
                    if extension.name.endswith("cuda"):
                        use_toolkit(extension, self.build_temp)
                        forget_stale(extension, self.build_temp)
                    super().build_extensions()
                    built.append(extension)
                except (Exception, SystemExit) as error:
                    if made.mode != "auto":
                        raise
                    target = extension.name.rpartition("_")[2]
                    made.reasons[target] = f"the build failed: {error} (`pip install -v` shows the compiler's words)"
                    print(f"torchaccel: {target} kernels: {made.reasons[target]}", file=sys.stderr)
            self.extensions = built

    return BuildKernels


def use_toolkit(extension: Extension, temp: str) -> None:
    """Point torch's extension builder at the toolkit, also where torch itself has no CUDA."""
    from torch.utils import cpp_extension

    cpp_extension.CUDA_HOME = cuda_home()
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ARCHITECTURES)
    if not any(Path(folder, "libtorch_cuda.so").exists() for folder in extension.library_dirs):
        os.makedirs(temp, exist_ok=True)
        stub = os.path.join(temp, "libtorch_cuda.so")
        source = b'extern "C" void aoti_torch_get_current_cuda_stream() {}'
        compiler = os.environ.get("CXX", "c++").split()
        flags = ["-shared", "-fPIC", "-Wl,-soname,libtorch_cuda.so", "-x", "c++", "-", "-o", stub]
        subprocess.run([*compiler, *flags], input=source, check=True)
        extension.library_dirs.append(temp)


def forget_stale(extension: Extension, temp: str) -> None:
    """Remove object files older than a header: beside a torch without CUDA, torch has nvcc track none."""
    headers = [path for path in extension.depends if path.endswith((".h", ".cuh"))]
    newest = max(map(os.path.getmtime, headers), default=0.0)
    for source in extension.sources:
        made = Path(temp, source).with_suffix(".o")
        if made.exists() and made.stat().st_mtime < newest:
            made.unlink()


def jobs() -> int:
    """Compilers at once: one a core, and no more than memory allows at 4 GB each."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and limit.read_text().strip().isdigit():
        memory = min(memory, int(limit.read_text()))
    return max(1, min(len(os.sched_getaffinity(0)), memory // (4 << 30)))


class _BuildInfo(Command):
    """Write what was built, and why the rest was not, where `torchaccel doctor` reads it."""

    plan: Plan
    editable_mode = False

    def initialize_options(self) -> None:
        self.build_lib: str | None = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self) -> None:
        if self.plan.error:
            raise SystemExit(self.plan.error)
        made = {"mode": self.plan.mode, "python": platform.python_version(), "reasons": self.plan.reasons}
        if "torch" in sys.modules:
            import torch

            made["torch"] = torch.__version__
        path = Path(self._path())
        if self.editable_mode:  # what an earlier build left in the tree must not pass for this one's
            for target in self.plan.reasons:
                path.with_name(f"_{target}.so").unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(made, indent=2) + "\n")

    def _path(self) -> str:
        return os.path.join("" if self.editable_mode else self.build_lib or "", "torchaccel", INFO)

    def get_source_files(self) -> list[str]:
        return []

    def get_outputs(self) -> list[str]:
        return [self._path()]

    def get_output_mapping(self) -> dict[str, str]:
        return {}
