"""From a module to a graph: torch.fx tracing that keeps this package's layers whole."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from typing import Any

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
        return _plain(fx.GraphModule(model, _copy(model.graph), class_name=type(model).__name__))
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
    except Exception as error:  # torch.fx lets any error of the model's code through
        raise UntraceableError(
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        ) from error
    return _plain(fx.GraphModule(tracer.root, graph, class_name=type(model).__name__))


def _plain(graph: fx.GraphModule) -> fx.GraphModule:
    """Layers called as `layer(input=x)` are called as `layer(x)`, and annotations are dropped, in place."""
    for node in graph.graph.nodes:
        node.type = None  # one that is a string cannot be pickled
        if node.op == "call_module" and not node.args and "input" in node.kwargs:
            kwargs = dict(node.kwargs)
            node.args, node.kwargs = (kwargs.pop("input"),), kwargs
    graph.recompile()
    return graph


def _copy(graph: fx.Graph) -> fx.Graph:
    copied = fx.Graph()
    copied.output(copied.graph_copy(graph, {}))
    return copied


def same_outputs(model: nn.Module, graph: nn.Module, inputs: tuple[Tensor, ...], within: float | None = None) -> bool:
    """Whether both give the same numbers on these inputs. What `model` raises is let through.

    Args:
        within: the size of the difference that is accepted, relative to the outputs' own, where the two are not meant
            to compute the same to the bit; integers may then be others, as an index of two values that are almost
            the same. None accepts next to nothing.
    """
    with torch.no_grad():
        expected = model(*(x.clone() for x in inputs))
        try:
            given = graph.forward(*(x.clone() for x in inputs))  # a call of a graph prints its errors
        except Exception:  # such as an argument left out, which the recorded graph uses
            return False
    return _same(given, expected, within)


def _same(given: Any, expected: Any, within: float | None) -> bool:
    if isinstance(expected, Tensor):
        if not isinstance(given, Tensor) or (given.shape, given.dtype) != (expected.shape, expected.dtype):
            return False
        if expected.numel() == 0:
            return True
        if not expected.is_floating_point():
            return within is not None or torch.equal(given, expected)
        if within is not None:
            finite = torch.isfinite(expected)
            difference = torch.where(finite, given - expected, 0.0).double().norm()
            size = torch.where(finite, expected, 0.0).double().norm()
            return bool(difference <= within * size + 1e-12)
        size = torch.nan_to_num(expected.float(), posinf=0.0, neginf=0.0).abs().max().item()
        return torch.allclose(given, expected, rtol=1e-3, atol=1e-4 * size, equal_nan=True)
    if type(given) is not type(expected):
        return False
    if isinstance(expected, Mapping):
        return list(given) == list(expected) and all(_same(given[k], expected[k], within) for k in expected)
    if isinstance(expected, list | tuple):
        return len(given) == len(expected) and all(_same(g, e, within) for g, e in zip(given, expected, strict=True))
    if hasattr(expected, "__dict__"):
        return _same(vars(given), vars(expected), within)
    return bool(given == expected)


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


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of the module runs hooks, which see its own input and output."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def read_elsewhere(graph: fx.GraphModule) -> set[str]:
    """The called modules whose parameters or buffers the graph reads by itself, as in `F.linear(x, self.layer.weight)`.

    Their weights must stay what they are.
    """
    read = {str(node.target).rpartition(".")[0] for node in graph.graph.nodes if node.op == "get_attr"}
    return {name for name in calls(graph) if name in read}


def fingerprint(graph: fx.GraphModule) -> str:
    """A digest of what a graph computes from what; names of values do not count."""
    place = {node: i for i, node in enumerate(graph.graph.nodes)}

    def word(value: Any) -> str:
        if isinstance(value, fx.Node):
            return f"%{place[value]}"
        plain = isinstance(value, bool | int | float | str | torch.dtype | torch.device) or value is None
        return repr(value) if plain else type(value).__name__

    lines = []
    for node in graph.graph.nodes:
        target = node.target if isinstance(node.target, str) else getattr(node.target, "__qualname__", "?")
        leaves = torch.utils._pytree.tree_leaves((node.args, sorted(node.kwargs.items())))
        lines.append(" ".join([node.op, target, *map(word, leaves)]))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` at the dotted `name`."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def call_instead(graph: fx.GraphModule, node: fx.Node, module: nn.Module, *inputs: fx.Node) -> fx.Node | None:
    """Call a module where a node calls a function; None, with nothing changed, if its name is taken."""
    name = f"lifted_{node.name}"
    if hasattr(graph, name):
        return None
    graph.add_submodule(name, module.eval())
    with graph.graph.inserting_before(node):
        call = graph.graph.call_module(name, inputs)
    call.meta = copy.copy(node.meta)
    node.replace_all_uses_with(call)
    graph.graph.erase_node(node)
    return call
