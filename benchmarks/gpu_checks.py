"""Checks of every CUDA op on a real device, by its Python function, against the same call on the CPU."""

from __future__ import annotations

import re
from pathlib import Path

import torch

import gpu_checks_images
import gpu_checks_products
import gpu_checks_quantize
import gpu_checks_replay
from gpu_items import Item, by_wgmma
from torchaccel import ops

SOURCES = Path(__file__).parents[1] / "csrc/cuda"


def items(device: torch.device, quick: bool) -> list[Item]:
    """The checks; a few of each kind where `quick`."""
    parts = (gpu_checks_quantize, gpu_checks_products, gpu_checks_images, gpu_checks_replay)
    made = [item for part in parts for item in part.items(device, quick)]
    registered = Item("each op that csrc/cuda registers has its kernel", lambda: _kernels(device))
    return [registered, *made, *by_wgmma(made, device)]


def claimed() -> list[str]:
    """The ops that the sources of the CUDA library implement."""
    text = "".join(path.read_text() for path in sorted(SOURCES.glob("*.cu")))
    return re.findall(r'm\.impl\("(\w+)"', text)


def _kernels(device: torch.device) -> dict[str, object]:
    found = {op: ops.has_kernel(op, device) for op in ops.names()}
    missing = [op for op in claimed() if not found.get(op)]
    if missing and device.type == "cuda":
        raise AssertionError(f"no kernel for {', '.join(missing)}: is the library older than the sources?")
    return {"kernels": found}
