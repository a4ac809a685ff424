"""What is known of each value of a graph: its shape and dtype, and whether it is changed in place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from torchaccel.graph.trace import module_of
from torchaccel.nn.add import Add

_KEY = "torchaccel_value"
# What these return shares no memory with what they read.
_FRESH = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm, nn.MaxPool2d, nn.AvgPool2d, Add)
_IN_PLACE = ("setitem", "__setitem__", "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior")


@dataclass(frozen=True)
class Value:
    """Shape and dtype of a node's tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def value_of(node: object) -> Value | None:
    """What `note_values` found, or None for what is no tensor."""
    return node.meta.get(_KEY) if isinstance(node, fx.Node) else None


class _Noting(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta.pop(_KEY, None)
        if isinstance(result, Tensor):
            n.meta[_KEY] = Value(tuple(result.shape), result.dtype)
        return result


def note_values(graph: fx.GraphModule, inputs: tuple[Tensor, ...]) -> None:
    """Run the graph once and note every tensor's shape and dtype.

    A batch of one is doubled where the model allows it: a sum that broadcasts over the batch is then seen as one.
    """
    given = tuple(x.clone() for x in inputs)
    with torch.no_grad():
        if any(x.dim() and x.shape[0] == 1 for x in inputs):
            doubled = (torch.cat([x, x]) if x.dim() and x.shape[0] == 1 else x.clone() for x in inputs)
            try:
                _Noting(graph).run(*doubled, enable_io_processing=False)
                return
            except Exception:  # whatever the model's code raises on a batch it is not made for
                pass
        _Noting(graph).run(*given, enable_io_processing=False)


def _changed(graph: fx.GraphModule, node: fx.Node) -> object:
    """What a node changes in place, or None."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op in ("placeholder", "get_attr", "output"):
        return None
    module = module_of(graph, node)
    if module is not None:
        changes = bool(getattr(module, "inplace", False))
    else:
        in_place = node.kwargs.get("inplace") is True or any(a is True for a in node.args[1:])
        changes = in_place or name.endswith("_") or name in _IN_PLACE or "out" in node.kwargs
    return node.kwargs.get("out", next(iter(node.all_input_nodes), None)) if changes else None


def _sources(graph: fx.GraphModule, value: object) -> set[fx.Node]:
    """The nodes whose memory a value may share: itself, and what it may be a view of."""
    found: set[fx.Node] = set()
    waiting = [value]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, fx.Node) or node in found:
            continue
        found.add(node)
        if not is_fresh(graph, node):
            waiting.extend(node.all_input_nodes)
    return found


def is_fresh(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a value shares no memory with what it was computed from."""
    return isinstance(module_of(graph, node), _FRESH)


def changed_between(graph: fx.GraphModule, value: object, first: fx.Node, last: fx.Node) -> bool:
    """Whether a node after `first` and before `last` may change the memory of `value` in place."""
    sources = _sources(graph, value)
    changed = (_changed(graph, node) for node in _between(first, last))
    return any(what is not None and sources & _sources(graph, what) for what in changed)


def _between(first: fx.Node, last: fx.Node) -> Iterator[fx.Node]:
    node = first.next
    while node is not last and node.op != "root":
        yield node
        node = node.next
