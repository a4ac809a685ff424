"""Lifting of pooling: functions become modules, and each call has a layer of its own, so that all can be exchanged."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from torchaccel.graph.shapes import value_of
from torchaccel.graph.trace import call_instead, calls, has_hooks, set_module
from torchaccel.graph.weightless import POOLS

_WINDOWS = ("kernel_size", "stride", "padding")
_SIGNATURES: dict[Any, tuple[type[nn.Module], tuple[str, ...]]] = {
    F.max_pool2d: (nn.MaxPool2d, (*_WINDOWS, "dilation", "ceil_mode", "return_indices")),
    torch.max_pool2d: (nn.MaxPool2d, (*_WINDOWS, "dilation", "ceil_mode")),
    F.avg_pool2d: (nn.AvgPool2d, (*_WINDOWS, "ceil_mode", "count_include_pad", "divisor_override")),
    F.adaptive_avg_pool2d: (nn.AdaptiveAvgPool2d, ("output_size",)),
}
_MEANS = (torch.mean, "mean")


def _settings(node: fx.Node, names: tuple[str, ...]) -> dict[str, Any] | None:
    """The arguments after the input, or None where the graph computes one."""
    given = dict(zip(("input", *names), node.args, strict=False)) | dict(node.kwargs)
    given.pop("input", None)
    leaves = torch.utils._pytree.tree_leaves(given)
    return None if given.keys() - set(names) or any(isinstance(leaf, fx.Node) for leaf in leaves) else given


def _is_global_mean(node: fx.Node) -> bool:
    """Whether a node is `x.mean((2, 3))` of [N, C, H, W], with or without keepdim."""
    given = _settings(node, ("dim", "keepdim")) if node.target in _MEANS else None
    value = value_of(node.all_input_nodes[0]) if node.all_input_nodes else None
    if not given or value is None or len(value.shape) != 4 or not isinstance(given.get("dim"), tuple | list):
        return False
    return sorted(d % 4 for d in given["dim"]) == [2, 3]


def part_pools(graph: fx.GraphModule) -> None:
    """Give each call of a pooling layer that a model calls several times a layer of its own, in place."""
    for name, nodes in calls(graph).items():
        module = graph.get_submodule(name)
        if type(module) not in POOLS or has_hooks(module):
            continue
        owner, _, last = name.rpartition(".")
        for i, node in enumerate(nodes[1:], 1):
            if not hasattr(graph.get_submodule(owner), f"{last}_{i}"):
                node.target = f"{name}_{i}"
                set_module(graph, node.target, copy.deepcopy(module))
    graph.recompile()


def lift_pools(graph: fx.GraphModule) -> None:
    """Replace pooling functions, and means over height and width, by modules, in place; `note_values` comes before."""
    for node in list(graph.graph.nodes):
        if node.op not in ("call_function", "call_method"):
            continue
        flat = False
        if node.target in _SIGNATURES:
            kind, names = _SIGNATURES[node.target]
            given = _settings(node, names)
            if given is None or given.pop("return_indices", False):
                continue
            made = kind(**given)
        elif _is_global_mean(node):
            made, flat = nn.AdaptiveAvgPool2d(1), not (_settings(node, ("dim", "keepdim")) or {}).get("keepdim", False)
        else:
            continue
        call = call_instead(graph, node, made, node.all_input_nodes[0])
        if call is not None and flat:
            readers = list(call.users)
            with graph.graph.inserting_after(call):
                flattened = graph.graph.call_function(torch.flatten, (call, 1))
            for reader in readers:
                reader.replace_input_with(call, flattened)
    graph.graph.lint()
    graph.recompile()
