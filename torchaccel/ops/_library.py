"""How an op comes to be: schema, reference and fake in Python, native kernels per device from `_native`.

The reference is registered as CompositeExplicitAutograd, so it serves every device that has no native kernel; a
native kernel registered for CPU or CUDA takes precedence in the dispatcher.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from torchaccel import _native

NAMESPACE = "torchaccel"
_library = torch.library.Library(NAMESPACE, "DEF")
_names: list[str] = []


def define(schema: str, reference: Callable, fake: Callable) -> None:
    """Register one op: its schema ("name(args) -> returns"), reference and fake (shapes and strides only)."""
    name = schema.partition("(")[0]
    qualified = f"{NAMESPACE}::{name}"
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, fake, lib=_library)
    _names.append(name)


def load_native() -> None:
    """Load the native libraries over the schemas defined so far (once, from `torchaccel.ops`)."""
    _native.load()


def names() -> tuple[str, ...]:
    """All ops, in the order of their definition."""
    return tuple(_names)


_capability = cache(torch.cuda.get_device_capability)


def too_old(device: torch.device) -> str | None:
    """Why the CUDA kernels do not run on a GPU, or None; they are compiled for compute capability 8.0 and later."""
    return None if device.type != "cuda" else _gpu_too_old(device)


@torch.compiler.assume_constant_result
def _gpu_too_old(device: torch.device) -> str | None:
    if _capability(device) >= (8, 0):
        return None
    capability = ".".join(map(str, _capability(device)))
    return f"the CUDA kernels need compute capability 8.0, {torch.cuda.get_device_name(device)} has {capability}"


@cache
def _native_checks(op: str, device_type: str) -> bool:
    return has_kernel(op, device_type)


def run(
    op: str,
    device: torch.device,
    reason: str | None,
    reference: Callable,
    validate: Callable[[], None],
    call: Callable[[Callable], Any],
) -> Any:
    """Call an op on checked arguments.

    A native kernel checks its arguments itself, so the Python checks, which cost more than a small layer, run only
    where there is none, or to say in better words why the kernel refused.

    Args:
        op: its name; device: of the input.
        reason: why no native kernel serves these arguments, or None.
        reference: called where there is a reason.
        validate: raises ValueError on wrong arguments.
        call: gives the op's arguments to the function it gets.
    """
    chosen = reference if reason is not None else getattr(torch.ops.torchaccel, op).default
    if reason is not None or torch.compiler.is_compiling() or not _native_checks(op, device.type):
        validate()
        return call(chosen)
    try:
        return call(chosen)
    except (RuntimeError, IndexError):
        validate()
        raise


def has_kernel(op: str, device: str | torch.device) -> bool:
    """Whether a native kernel, rather than the reference, serves `op` on `device`, as the dispatcher sees it."""
    key = torch.device(device).type.upper()
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{op}", key)
