"""Each PTX wrapper on the GPU: its outputs, and whether they are the committed ones and numpy's."""

from __future__ import annotations

import ctypes
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpu_items import Item, Result, has_wgmma

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "build/cuda/libptx_vectors.so"
sys.path.insert(0, str(ROOT / "tests/csrc/cuda"))

import ptx_vectors  # noqa: E402


def items(device: torch.device, quick: bool) -> list[Item]:
    names = [name for name in ptx_vectors.VECTORS if has_wgmma(device) or not name.startswith("wgmma")]
    return [Item(name, partial(_check, name, device)) for name in names]


def _check(name: str, device: torch.device) -> Result:
    given, want = ptx_vectors.VECTORS[name]()
    out = _on_gpu(name, given, want.shape, device) if device.type == "cuda" else want
    wrong = ptx_vectors.wrong_words(out, want)
    differs = ptx_vectors.differs(out, ptx_vectors.read()["vectors"][name]["out"])
    found: Result = {"out": ptx_vectors.recorded(out)}
    if wrong or differs:
        found |= {"status": "failed", "detail": f"numpy: {wrong or 'equal'}; committed: {differs or 'equal'}"}
    return found


def _on_gpu(name: str, given: np.ndarray, shape: tuple[int, int], device: torch.device) -> np.ndarray:
    library = ctypes.CDLL(str(LIBRARY))
    words = torch.from_numpy(given.view(np.int32)).to(device)
    out = torch.full(shape, 0x5A5A5A5A, dtype=torch.int32, device=device)
    torch.cuda.synchronize(device)
    ptx_vectors.on_device(library, name, (words.data_ptr(), out.data_ptr()), (given.shape[1], shape[1]))
    return out.cpu().numpy().view(np.uint32)


def record(result: dict[str, Any]) -> Path:
    """Make the outputs in a JSON of gpu-check the committed ones; returns the file.

    Raises:
        ValueError: the JSON is of a dry run, or a wrapper is missing or failed in it.
    """
    outputs = {entry["name"]: entry["out"] for entry in result["ptx"] if "out" in entry}
    wrong = [entry["name"] for entry in result["ptx"] if entry["status"] == "failed"]
    wrong += [name for name in ptx_vectors.VECTORS if name not in outputs]
    device, driver = result["environment"].get("device"), result["gpu_before"].get("driver_version")
    if wrong or not device or not driver:
        raise ValueError(f"record: {', '.join(wrong) or 'no GPU'}: look into it before it becomes what is expected")
    ptx_vectors.FILE.write_text(ptx_vectors.as_json(f"{device}, driver {driver}", outputs))
    return ptx_vectors.FILE
