"""Layers of a graph that have no weights: pooling and additions, exchanged to hand int8 on between int8 layers."""

from __future__ import annotations

import copy

from torch import fx, nn

from torchaccel.graph.trace import calls, has_hooks, module_of, set_module
from torchaccel.nn import Int8AdaptiveAvgPool2d, Int8Add, Int8AvgPool2d, Int8MaxPool2d
from torchaccel.nn.add import Add

POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
INT8_WEIGHTLESS = (Int8MaxPool2d, Int8AvgPool2d, Int8AdaptiveAvgPool2d, Int8Add)


def weightless(graph: fx.GraphModule) -> list[str]:
    """Those that can be exchanged: called once, without hooks."""
    found = {name: graph.get_submodule(name) for name, nodes in calls(graph).items() if len(nodes) == 1}
    return [name for name, module in found.items() if type(module) in (*POOLS, Add) and not has_hooks(module)]


def weightless_to_float(graph: fx.GraphModule) -> dict[str, nn.Module]:
    """Put float layers in place of int8 ones; returns copies of those by name."""
    found = {str(n.target): m for n in graph.graph.nodes if isinstance(m := module_of(graph, n), INT8_WEIGHTLESS)}
    for name, module in found.items():
        set_module(graph, name, module.to_float())
    return {name: copy.deepcopy(module) for name, module in found.items()}
