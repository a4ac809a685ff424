"""Items: what gpu-check does one after the other, each with its result, none stopping the others.

An item that breaks the device (an illegal access is sticky) ends its process; `gpu_check` starts another for the rest.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from torchaccel import ops

Result = dict[str, Any]  # {name, status, detail, s, and what the item found}
OK, FAILED, NO_KERNEL, NOT_RUN = "ok", "failed", "no kernel", "not run"


@dataclass(frozen=True)
class Item:
    """A check, which raises where something is wrong, or a measurement, which returns its figures."""

    name: str
    run: Callable[[], Result | None]
    ops: tuple[str, ...] = ()  # that must have a kernel of their own
    facts: Result = field(default_factory=dict)  # of the result, whatever comes of it
    isa: str = "mma"  # by which instruction products go: TORCHACCEL_CUDA_ISA


# The ops that multiply by tensor cores.
PRODUCTS = {"int8_linear", "int8_conv2d", "sparse_int8_conv2d", "sparse_conv2d"}


def has_wgmma(device: torch.device) -> bool:
    """On a CPU too, so that a dry run walks everything."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) == (9, 0)


def by_wgmma(items: Iterable[Item], device: torch.device) -> list[Item]:
    """Those of products once more, by wgmma, where the device has it."""
    if not has_wgmma(device):
        return []
    return [
        replace(item, name=f"{item.name}, wgmma", facts=item.facts | _named(item.facts), isa="wgmma")
        for item in items
        if PRODUCTS.intersection(item.ops)
    ]


def _named(facts: Result) -> Result:
    return {"who": f"{facts['who']}, wgmma"} if "who" in facts else {}


class BrokenDeviceError(Exception):
    """The device answers nothing any more in this process."""


def run_items(
    items: Iterable[Item],
    device: torch.device,
    deadline: float,
    emit: Callable[[Result], None],
    begin: Callable[[str], None] = lambda name: None,
    done: Collection[str] = (),
) -> None:
    """Run what is not done yet until `deadline` (time.monotonic).

    `begin` gets each name before, `emit` each result after.

    Raises:
        BrokenDeviceError: after the result of the item that broke it.
    """
    for item in items:
        if item.name in done:
            continue
        start = time.monotonic()
        result: Result = {"name": item.name, "status": OK, "detail": "", **item.facts}
        missing = [op for op in item.ops if device.type == "cuda" and not ops.has_kernel(op, device)]
        if start > deadline:
            result |= {"status": NOT_RUN, "detail": "the time limit was reached"}
        elif missing:
            result |= {"status": NO_KERNEL, "detail": f"no CUDA kernel for {', '.join(missing)}"}
        else:
            begin(item.name)
            os.environ["TORCHACCEL_CUDA_ISA"] = item.isa
            try:
                result |= item.run() or {}
            except Exception as error:
                detail = "".join(traceback.format_exception_only(error)).strip()
                result |= {"status": FAILED, "detail": detail[:1000]}
        broken = _broken(device)
        if broken is not None:
            result |= {"status": FAILED, "detail": f"{result['detail']} [{broken}]".strip()}
        result["s"] = round(time.monotonic() - start, 2)
        emit(result)
        if broken is not None:
            raise BrokenDeviceError(broken)


def _broken(device: torch.device) -> str | None:
    if device.type != "cuda":
        return None
    try:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


def shown(result: Result) -> str:
    """One line for the log."""
    figures = [f"{key}={value:.4g}" for key, value in result.items() if isinstance(value, float) and key != "s"]
    head = f"  {result['status']:<9} {result['s']:6.1f} s  {result['name']}"
    return " ".join([head, *figures, result["detail"]]).rstrip()
