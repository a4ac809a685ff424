"""Connecting: int8 layers hand int8 to int8 layers, so that activations stay a quarter of their size in between."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import fx, nn

from torchaccel.graph.chain import chain
from torchaccel.graph.layouts import forget_contiguous, keep_contiguous
from torchaccel.graph.shapes import changed_between, value_of
from torchaccel.graph.trace import module_of, set_module, trace
from torchaccel.nn import (
    Int8AdaptiveAvgPool2d,
    Int8Add,
    Int8AvgPool2d,
    Int8Conv2d,
    Int8ConvTranspose2d,
    Int8Linear,
    Int8MaxPool2d,
    SparseInt8Conv2d,
)
from torchaccel.nn.concatenation import parts_of
from torchaccel.nn.input_range import InputRange, spanning
from torchaccel.nn.quantize import QuantizeInt8
from torchaccel.nn.upsample import Upsample

INT8 = (
    Int8Conv2d, Int8ConvTranspose2d, SparseInt8Conv2d, Int8Linear, Int8AvgPool2d, Int8AdaptiveAvgPool2d, Int8Add,
)  # fmt: skip
_ADDING = (Int8Conv2d, SparseInt8Conv2d, Int8Add)  # those that take a residual


@dataclass(frozen=True)
class _Use:
    node: fx.Node
    role: str  # "x" or "residual" of an int8 layer, or "other"


def _passes(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node gives int8 back as it reads it, with the same scale: max-pooling, upsampling, a change of shape,
    or a concatenation of what has one scale."""
    if parts_of(node) is not None:
        return True
    if node.op == "call_module":
        return isinstance(module_of(graph, node), Int8MaxPool2d | Upsample | nn.Flatten)
    return node.target is torch.flatten or (node.op == "call_method" and node.target in ("flatten", "reshape"))


@dataclass(frozen=True)
class _Group:
    """Values that must have one scale, since nodes that pass int8 on lie between them."""

    made: list[fx.Node]  # by nodes that do not pass
    uses: list[_Use]


def _group(graph: fx.GraphModule, node: fx.Node) -> _Group:
    """Who makes and who reads the value of `node`, directly or behind what passes it on."""
    group, seen, waiting = _Group([], []), {node}, [node]
    while waiting:
        value = waiting.pop(0)
        passed = [user for user in value.users if _passes(graph, user)]
        sources = (parts_of(value) or value.all_input_nodes[:1]) if _passes(graph, value) else []
        if not sources:
            group.made.append(value)
        group.uses.extend(_uses(graph, value))
        new = [other for other in (*passed, *sources) if other not in seen]
        waiting += new
        seen.update(new)
    return group


def _uses(graph: fx.GraphModule, node: fx.Node) -> Iterator[_Use]:
    """Who reads the value of `node` and does not pass it on."""
    for user in node.users:
        if _passes(graph, user):
            continue
        if isinstance(module_of(graph, user), INT8):
            if user.args and user.args[0] is node:
                yield _Use(user, "x")
            if len(user.args) > 1 and user.args[1] is node:
                yield _Use(user, "residual")
        else:
            yield _Use(user, "other")


def _common_range(graph: fx.GraphModule, uses: list[_Use]) -> InputRange | None:
    """The one static range that all readers of x expect, or of a value that is a residual alone, its own; or None."""
    readers = [module_of(graph, use.node) for use in uses if use.role == "x"]
    ranges = {reader.input_range() for reader in readers if isinstance(reader, INT8)}
    if not readers:
        adding = [module_of(graph, use.node) for use in uses if use.role == "residual"]
        ranges = {layer.residual_range for layer in adding if isinstance(layer, _ADDING)}
    return ranges.pop() if len(ranges) == 1 else None


def _widen(graph: fx.GraphModule, uses: list[_Use]) -> InputRange | None:
    """Give all readers of x the range that spans theirs, where none loses more than a bit by it."""
    readers = [layer for use in uses if use.role == "x" and isinstance(layer := module_of(graph, use.node), INT8)]
    ranges = {reader.input_range() for reader in readers}
    known = [given for given in ranges if given is not None]
    if len(known) < len(ranges) or len({given.dtype for given in known}) != 1:
        return None
    span = spanning(known)
    if span.scale > 2 * min(given.scale for given in known):
        return None
    for reader in readers:
        reader.set_input(span.scale, span.zero_point, span.dtype)
    return span


def _half(node: fx.Node) -> bool:
    """Whether a value is float16 or bfloat16: a layer that reads int8 could not tell which type to give back."""
    value = value_of(node)
    return value is not None and value.dtype in (torch.float16, torch.bfloat16)


def connect(graph: fx.GraphModule) -> None:
    """Set int8 outputs and residuals where every reader takes them, share quantizations, settle layouts; in place.

    Values that are concatenated, and all that reads one of them, get one range: where calibration found several, the
    one that spans them.
    """
    nodes = list(graph.graph.nodes)
    for node in nodes:
        if not isinstance(layer := module_of(graph, node), INT8):
            continue
        group = _group(graph, node)
        whole = all(isinstance(module_of(graph, made), INT8) and not _half(made) for made in group.made)
        if not whole or any(use.role == "other" for use in group.uses):
            continue
        wanted = _common_range(graph, group.uses) or _widen(graph, group.uses)
        if wanted is not None:
            layer.set_output(wanted.scale, wanted.zero_point, wanted.dtype)
            for adding in (module_of(graph, use.node) for use in group.uses if use.role == "residual"):
                assert isinstance(adding, _ADDING)
                adding.set_residual(wanted.scale, wanted.zero_point, wanted.dtype)
    for node in nodes:
        _share_quantization(graph, node)
    keep_contiguous(graph)
    graph.graph.lint()
    graph.recompile()


def disconnect(graph: fx.GraphModule) -> None:
    """Undo `connect`, in place: int8 layers quantize their inputs themselves and give floats back, nothing is copied.

    The layers that change are replaced by copies.
    """
    for node in list(graph.graph.nodes):
        module = module_of(graph, node)
        if isinstance(module, QuantizeInt8):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
        elif isinstance(module, INT8) and (
            module.output_dtype != torch.float32 or getattr(module, "int8_residual", False)
        ):
            alone = copy.deepcopy(module)
            alone.set_float()
            set_module(graph, str(node.target), alone)
    forget_contiguous(graph)
    graph.delete_all_unused_submodules()
    graph.recompile()


def _share_quantization(graph: fx.GraphModule, node: fx.Node) -> None:
    """One quantization for a float value that several int8 layers read."""
    made = (module_of(graph, source) for source in _group(graph, node).made)
    if any(isinstance(layer, INT8) and layer.output_dtype != torch.float32 for layer in made):
        return
    readers = [user for user in node.users if isinstance(module_of(graph, user), INT8) and user.args[0] is node]
    wanted = _common_range(graph, [_Use(reader, "x") for reader in readers])
    if len(readers) < 2 or wanted is None or _half(node) or any(changed_between(graph, node, node, r) for r in readers):
        return
    name = f"quantize_{node.name}"
    while hasattr(graph, name):
        name += "_"
    first = module_of(graph, readers[0])
    assert isinstance(first, INT8)
    graph.add_submodule(name, QuantizeInt8(wanted).to(next(first.buffers()).device))
    with graph.graph.inserting_after(node):
        quantized = graph.graph.call_module(name, (node,))
    for reader in readers:
        reader.args = (quantized, *reader.args[1:])


def assemble(model: nn.Module, chosen: Mapping[str, nn.Module], chained: Collection[str] = frozenset()) -> nn.Module:
    """A new model with copies of the `chosen` modules in place of those of the same names; a graph is connected.

    `model` and the modules given stay as they are. A graph shares the layers that were not chosen. Neighbouring layers
    among `chained` run as one.
    """
    if not isinstance(model, fx.GraphModule):
        assembled: nn.Module = copy.deepcopy(model)
        for name, module in chosen.items():
            set_module(assembled, name, copy.deepcopy(module))
        return assembled
    graph = trace(model)
    graph.meta.update(model.meta)
    for name, module in chosen.items():
        set_module(graph, name, copy.deepcopy(module))
    connect(graph)
    if chained:
        chain(graph, chained)
    return graph
