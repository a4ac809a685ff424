"""From a user's model to its strongest dense form, layer by layer: the ground on which choices are made."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from torchaccel.graph.chain import unchain
from torchaccel.graph.connect import disconnect
from torchaccel.graph.fold import fold
from torchaccel.graph.fuse import LAYERS, fuse, layers, reshape_views, strongest_dense, strongest_of
from torchaccel.graph.lift import lift
from torchaccel.graph.lift_pools import lift_pools, part_pools
from torchaccel.graph.lift_upsampling import lift_upsampling
from torchaccel.graph.shapes import note_values
from torchaccel.graph.trace import UntraceableError, calls, fingerprint, same_outputs, set_module, trace
from torchaccel.graph.weightless import weightless, weightless_to_float
from torchaccel.nn import (
    Int8Add,
    Int8Conv2d,
    Int8ConvTranspose2d,
    Int8Linear,
    Int8LinearWeightOnly,
    SparseConv2d,
    SparseInt8Conv2d,
)

_CONVERTED = (Int8Conv2d, Int8ConvTranspose2d, Int8Linear, Int8LinearWeightOnly, SparseInt8Conv2d, SparseConv2d)
_HALVES = (torch.float16, torch.bfloat16)


@dataclass
class Prepared:
    """A dense model whose layers can be exchanged by name.

    Attributes:
        dense: a fused graph, or a module where the model could not be traced.
        names: the layers that can be exchanged.
        given: layers that were int8 or sparse already, by name, with what was fused; `dense` has float ones there.
        note: why the model was not traced, or None.
        weightless: pooling layers and additions that can be exchanged; between int8 layers they hand int8 on.
    """

    dense: nn.Module
    names: list[str]
    given: dict[str, nn.Module] = field(default_factory=dict)
    note: str | None = None
    weightless: list[str] = field(default_factory=list)


def _to_float(
    model: nn.Module, inputs: tuple[Tensor, ...], kinds: tuple[type[nn.Module], ...] = _CONVERTED
) -> dict[str, nn.Module]:
    """Put dense float layers in place of int8 and sparse ones; returns copies of those by name."""
    found: dict[str, Any] = {n: m for n, m in model.named_modules() if isinstance(m, kinds)}
    if any(getattr(m, "output_dtype", torch.float32) != torch.float32 for m in found.values()):
        return {}  # what reads their int8 outputs takes no floats
    if isinstance(model, fx.GraphModule):
        called = calls(model)
        found = {name: module for name, module in found.items() if name in called}
    half = next((x.dtype for x in inputs if x.dtype in _HALVES), None)
    for name, module in found.items():
        plain = module.to_float()
        strongest = strongest_of(plain)
        assert strongest is not None
        dense = strongest.from_float(plain)
        dense.fuse_activation(module.activation)
        set_module(model, name, dense if half is None else dense.to(half))
    return {name: copy.deepcopy(module) for name, module in found.items()}


def prepare(model: nn.Module, inputs: tuple[Tensor, ...], protected: Collection[str] = ()) -> Prepared:
    """Trace, fold and fuse; where the model cannot be traced, replace layer by layer.

    Args:
        model: in eval mode; where it cannot be traced its layers are replaced in place, so give a copy.
        inputs: example inputs, to learn shapes from.
        protected: modules whose weights another module reads by itself; they stay as they are.
    """
    try:
        graph = trace(model)
        if not same_outputs(model, graph, inputs):
            raise UntraceableError(
                "the recorded graph gives other outputs than the model, so its Python depends on values"
            )
        unchain(graph)
        if "torchaccel_inputs" in getattr(model, "meta", ()):
            disconnect(graph)
        prepared = _fused(graph, inputs)
        if not same_outputs(model, prepared.dense, inputs, within=_tolerance(inputs, prepared.given)):
            raise UntraceableError("its outputs changed when layers were folded and fused")
        return prepared
    except UntraceableError as error:
        return _replaced(
            model, inputs, protected, f"not traced, so layers were replaced one by one, without fusing: {error}"
        )


def _tolerance(inputs: tuple[Tensor, ...], given: Mapping[str, nn.Module]) -> float:
    """How far rounding may move the outputs: sums are taken in another order, and int8 layers given become float."""
    if given:
        return 0.5
    return 0.1 if any(x.dtype in _HALVES for x in inputs) else 0.01


def _replaced(model: nn.Module, inputs: tuple[Tensor, ...], protected: Collection[str], note: str) -> Prepared:
    """The model with its layers in their strongest form, where it runs with them."""
    before = copy.deepcopy(model)
    given = _to_float(model, inputs)
    names = [name for name, module in model.named_modules() if strongest_of(module) is not None]
    strongest_dense(model, [name for name in names if name not in protected])
    names = [name for name, module in model.named_modules() if isinstance(module, LAYERS)]
    if not same_outputs(before, model, inputs, within=_tolerance(inputs, given)):
        return Prepared(before, [], {}, f"{note}; with its layers replaced the model gave other outputs, so all stay")
    return Prepared(model, names, given, note)


def _fused(graph: fx.GraphModule, inputs: tuple[Tensor, ...]) -> Prepared:
    lift(graph)
    note_values(graph, inputs)
    given_weightless = weightless_to_float(graph)
    lift_pools(graph)
    part_pools(graph)
    lift_upsampling(graph)
    _to_float(graph, inputs, (SparseConv2d,))  # nothing folds into it; its zeros tell what it was
    fold(graph)
    given = _to_float(graph, inputs)
    fuse(graph)
    reshape_views(graph)
    for name, module in given_weightless.items():
        if isinstance(module, Int8Add):
            module.activation = str(graph.get_submodule(name).activation)
    for name, module in given.items():
        if module.activation != (fused := graph.get_submodule(name).activation):
            module.fuse_activation(fused)  # type: ignore[operator]
    graph.meta["torchaccel_inputs"] = [{"shape": list(x.shape), "dtype": str(x.dtype)} for x in inputs]
    graph.meta["torchaccel_graph"] = fingerprint(graph)
    return Prepared(graph, layers(graph), given | given_weightless, weightless=weightless(graph))


_DTYPES = {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}


def skeleton(model: nn.Module, inputs: Sequence[Mapping[str, Any]]) -> fx.GraphModule:
    """The fused graph of a model under the meta device, as `prepare` made it, to load a checkpoint into.

    Raises:
        UntraceableError: the model cannot be recorded.
        KeyError, TypeError: `inputs` are not as `prepare` noted them.
    """
    graph = trace(model)
    tensors = tuple(torch.empty(list(x["shape"]), dtype=_DTYPES[x["dtype"]], device="meta") for x in inputs)
    dense = _fused(graph, tensors).dense
    assert isinstance(dense, fx.GraphModule)
    return dense
