"""From a user's model to its strongest dense form, layer by layer: the ground on which choices are made."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from torchaccel.graph.fold import fold
from torchaccel.graph.fuse import LAYERS, fuse, layers, strongest_dense
from torchaccel.graph.trace import UntraceableError, same_outputs, set_module, trace
from torchaccel.nn import Int8Conv2d, Int8Linear, SparseConv2d, SparseInt8Conv2d

_CONVERTED = (Int8Conv2d, Int8Linear, SparseInt8Conv2d, SparseConv2d)


@dataclass
class Prepared:
    """A dense model whose layers can be exchanged by name.

    Attributes:
        dense: a fused graph, or a module where the model could not be traced.
        names: the layers that can be exchanged.
        given: layers that were int8 or sparse already, by name, with what was fused; `dense` has float ones there.
        note: why the model was not traced, or None.
    """

    dense: nn.Module
    names: list[str]
    given: dict[str, nn.Module] = field(default_factory=dict)
    note: str | None = None


def _to_float(model: nn.Module) -> dict[str, nn.Module]:
    given: dict[str, nn.Module] = {n: m for n, m in model.named_modules() if isinstance(m, _CONVERTED)}
    for name, module in given.items():
        set_module(model, name, module.to_float())  # type: ignore[operator]
    return given


def prepare(model: nn.Module, inputs: tuple[Tensor, ...], protected: Collection[str] = ()) -> Prepared:
    """Trace, fold and fuse; where the model cannot be traced, replace layer by layer.

    Args:
        model: in eval mode; it is taken apart, so give a copy.
        inputs: example inputs, to learn shapes from.
        protected: modules whose weights another module reads by itself; they stay as they are.
    """
    try:
        graph = trace(model)
        if not same_outputs(model, graph, inputs):
            raise UntraceableError(
                "the recorded graph gives other outputs than the model, so its Python depends on values"
            )
    except UntraceableError as error:
        given = _to_float(model)
        names = [name for name, module in model.named_modules() if type(module) in (nn.Conv2d, nn.Linear)]
        strongest_dense(model, [name for name in names if name not in protected])
        names = [name for name, module in model.named_modules() if isinstance(module, LAYERS)]
        return Prepared(model, names, given, f"not traced, so layers were replaced one by one, without fusing: {error}")
    return _fused(graph, inputs)


def _fused(graph: fx.GraphModule, inputs: tuple[Tensor, ...]) -> Prepared:
    fold(graph)
    given = _to_float(graph)
    fuse(graph, inputs)
    for name, module in given.items():
        module.fuse_activation(graph.get_submodule(name).activation)  # type: ignore[operator]
    graph.meta["torchaccel_inputs"] = [{"shape": list(x.shape), "dtype": str(x.dtype)} for x in inputs]
    return Prepared(graph, layers(graph), given)


_DTYPES = {
    str(dtype): dtype
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int32, torch.int64)
}


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
