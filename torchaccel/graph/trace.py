"""From a module to a graph: torch.fx tracing that keeps this package's layers whole."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

_PACKAGE = __name__.partition(".")[0]


class UntraceableError(Exception):
    """The model's Python cannot be recorded as a graph; the message says why."""


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        own = type(module).__module__.startswith(f"{_PACKAGE}.nn.")
        return own or super().is_leaf_module(module, qualified_name)


def trace(model: nn.Module) -> fx.GraphModule:
    """Record `model`, in eval mode, as a graph that shares its modules.

    Raises:
        UntraceableError: control flow that depends on values, or other Python that torch.fx cannot record.
    """
    if isinstance(model, fx.GraphModule):
        return fx.GraphModule(model, _copy(model.graph), class_name=type(model).__name__)
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
    except Exception as error:  # torch.fx lets any error of the model's code through
        raise UntraceableError(
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        ) from error
    return fx.GraphModule(tracer.root, graph, class_name=type(model).__name__)


def _copy(graph: fx.Graph) -> fx.Graph:
    copied = fx.Graph()
    copied.output(copied.graph_copy(graph, {}))
    return copied


def same_outputs(model: nn.Module, graph: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether both give the same numbers on these inputs, up to rounding."""
    with torch.no_grad():
        expected, given = model(*inputs), graph(*inputs)
    try:
        torch.testing.assert_close(given, expected, rtol=1e-3, atol=1e-3, equal_nan=True)
    except AssertionError:
        return False
    return True


def calls(graph: fx.GraphModule) -> dict[str, list[fx.Node]]:
    """Module name -> the nodes that call it."""
    found: dict[str, list[fx.Node]] = {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            found.setdefault(str(node.target), []).append(node)
    return found


def module_of(graph: fx.GraphModule, node: object) -> nn.Module | None:
    """The module that a node calls, or None."""
    if isinstance(node, fx.Node) and node.op == "call_module":
        return graph.get_submodule(str(node.target))
    return None


def set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` at the dotted `name`."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
