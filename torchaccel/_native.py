"""The one place that loads native libraries.

Two libraries hold the kernels, on libtorch's stable ABI and without Python symbols: `_cpu.so`, and `_cuda.so` that is
loaded only where torch has CUDA. `TORCHACCEL_CUDA_LIBRARY` names a CUDA library built elsewhere. `_data.so` is the
Python module of csrc/data, which decodes images.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

_HERE = Path(__file__).parent
_REBUILD = "install torchaccel again where a C++ compiler is found"


@dataclass
class _Library:
    path: str
    loaded: bool = False
    reason: str | None = None  # why it is not loaded


_libraries: dict[str, _Library] = {}


def load() -> None:
    """Load each library that is there; what is not is remembered with its reason. A second call does nothing."""
    if not _libraries:
        _libraries["cpu"] = _load(_HERE / "_cpu.so", "cpu")
        _libraries["cuda"] = _load_cuda()


def status() -> dict[str, dict[str, Any]]:
    """For "cpu" and "cuda": {path, loaded, reason}; `reason` says why a library is not loaded."""
    load()
    return {name: asdict(library) for name, library in _libraries.items()}


def isa() -> str | None:
    """The instruction set that the CPU kernels use, or None without them."""
    return _text("torchaccel_isa")


def isas_available() -> tuple[str, ...]:
    """The instruction sets that this processor has and the CPU kernels can use, slowest first."""
    return tuple(name for name in (_text("torchaccel_isas_available") or "").split(",") if name)


def force_isa(name: str) -> None:
    """Make the CPU kernels use the instruction set `name` from now on.

    Raises:
        RuntimeError: the CPU kernels are not loaded.
        ValueError: this processor or the library lacks `name`.
    """
    function = _function("torchaccel_force_isa")
    if function is None:
        raise RuntimeError(f"force_isa: the CPU kernels are not loaded: {status()['cpu']['reason']}")
    function.argtypes, function.restype = [ctypes.c_char_p], ctypes.c_int
    if function(name.encode()) != 0:
        raise ValueError(f"force_isa: name is {name!r}, accepted are {', '.join(isas_available())}")


def build_info() -> dict[str, Any]:
    """What the install wrote about its build: {mode, torch, python, reasons}; empty where it wrote nothing."""
    path = _HERE / "_build_info.json"
    return json.loads(path.read_text()) if path.exists() else {}


def data() -> tuple[Any, str | None]:
    """The module of csrc/data and None, or None and why it is not there."""
    if not (_HERE / "_data.so").exists():
        return None, build_info().get("reasons", {}).get("data", f"it was not built; {_REBUILD}")
    try:
        return importlib.import_module("torchaccel._data"), None
    except ImportError as error:
        return None, f"it does not load: {error}"


def _load_cuda() -> _Library:
    given = os.environ.get("TORCHACCEL_CUDA_LIBRARY")
    path = Path(given) if given else _HERE / "_cuda.so"
    if torch.version.cuda is None:
        return _Library(str(path), reason=f"torch {torch.__version__} was built without CUDA")
    if given and not path.exists():
        raise FileNotFoundError(f"TORCHACCEL_CUDA_LIBRARY is {given!r}, which is not a file")
    return _load(path, "cuda")


def _load(path: Path, target: str) -> _Library:
    if not path.exists():
        return _Library(str(path), reason=build_info().get("reasons", {}).get(target, f"it was not built; {_REBUILD}"))
    try:
        torch.ops.load_library(str(path))
    except OSError as failure:
        error = failure.__cause__ or failure
        # Not fatal, since every op has a reference; not silent, since that is slow.
        warnings.warn(f"torchaccel: the {target} kernels do not load, references serve instead: {error}", stacklevel=2)
        return _Library(str(path), reason=f"it does not load: {error}")
    return _Library(str(path), loaded=True)


def _function(name: str) -> Any:
    load()
    library = _libraries["cpu"]
    return getattr(ctypes.CDLL(library.path), name, None) if library.loaded else None


def _text(name: str) -> str | None:
    function = _function(name)
    if function is None:
        return None
    function.restype = ctypes.c_char_p
    value = function()
    return value.decode() if value else None
