"""Which layers' weights another module reads by itself, so that swapping the layer would break or bypass it."""

from __future__ import annotations

import dis
from collections.abc import Iterator
from functools import cache
from types import CodeType, FunctionType

from torch import nn

_NOT_AT_WORK = ("__init__", "__setstate__", "__repr__", "extra_repr")


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _chains(code: CodeType) -> Iterator[tuple[str, ...]]:
    """The attribute chains of a function that start at `self`: `self.a.b` is ("a", "b")."""
    chain: list[str] | None = None
    for instruction in dis.get_instructions(code):
        if chain is not None and instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            chain.append(instruction.argval)
            continue
        if chain:
            yield tuple(chain)
        chain = None
        if instruction.opname.startswith(("LOAD_FAST", "LOAD_DEREF")):
            names = instruction.argval if isinstance(instruction.argval, tuple) else (instruction.argval,)
            chain = [] if names[-1] == "self" else None
    if chain:
        yield tuple(chain)


@cache
def _weight_reads(cls: type[nn.Module]) -> frozenset[str]:
    """The paths of the submodules whose `weight` or `bias` the methods of a class read, such as "out_proj"."""
    found = set()
    for base in cls.__mro__:
        if base is nn.Module or not issubclass(base, nn.Module):
            continue
        for name, value in vars(base).items():
            if (
                isinstance(value, FunctionType)
                and name not in _NOT_AT_WORK
                and "init" not in name
                and "reset" not in name
            ):
                for code in _codes(value.__code__):
                    for chain in _chains(code):
                        for i, attribute in enumerate(chain):
                            if i and attribute in ("weight", "bias"):
                                found.add(".".join(chain[:i]))
    return frozenset(found)


def why_kept(model: nn.Module) -> dict[str, str]:
    """The linear and convolution layers whose weights another module reads by itself, each with the reason.

    `nn.MultiheadAttention` reads `out_proj.weight` and `nn.TransformerEncoderLayer` reads those of `linear1` and
    `linear2` on its fast path, both without calling the layer. Others are found in the code of each module's methods:
    `self.<layer>.weight` or `.bias` outside of initialization. A read through a local variable is not seen.

    Args:
        model: any module.

    Returns:
        Reason by name, names as in `model.named_modules()`.
    """
    readers: dict[int, str] = {}
    for module in model.modules():
        for path in _weight_reads(type(module)):  # type: ignore[arg-type]
            child: object = module
            for part in path.split("."):
                child = getattr(child, part, None)
            if isinstance(child, nn.Linear | nn.Conv2d | nn.ConvTranspose2d) and child is not module:
                readers.setdefault(id(child), f"{type(module).__name__} reads its weight by itself")
    return {name: readers[id(m)] for name, m in model.named_modules() if id(m) in readers}
