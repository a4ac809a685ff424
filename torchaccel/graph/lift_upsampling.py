"""Lifting of upsampling: nearest neighbours by a whole factor, functions and modules, become one kind of layer."""

from __future__ import annotations

import inspect

import torch
import torch.nn.functional as F
from torch import fx, nn

from torchaccel.graph.shapes import value_of
from torchaccel.graph.trace import call_instead, calls, has_hooks, set_module
from torchaccel.nn.upsample import Upsample

_SIGNATURE = inspect.signature(F.interpolate)


def _layer(node: fx.Node) -> Upsample | None:
    """What a call of `F.interpolate` does, or None where it is another upsampling or the graph computes its size."""
    given = _SIGNATURE.bind(*node.args, **node.kwargs).arguments
    leaves = torch.utils._pytree.tree_leaves({name: value for name, value in given.items() if name != "input"})
    if any(isinstance(leaf, fx.Node) for leaf in leaves):
        return None
    return Upsample.like(given.get("size"), given.get("scale_factor"), given.get("mode", "nearest"))


def lift_upsampling(graph: fx.GraphModule) -> None:
    """In place; `note_values` comes before."""
    for name, nodes in calls(graph).items():
        module = graph.get_submodule(name)
        images = all((value := value_of(node)) is not None and len(value.shape) == 4 for node in nodes)
        if not images or type(module) not in (nn.Upsample, nn.UpsamplingNearest2d) or has_hooks(module):
            continue
        assert isinstance(module, nn.Upsample)
        if (made := Upsample.like(module.size, module.scale_factor, module.mode)) is not None:
            set_module(graph, name, made.eval())
    for node in list(graph.graph.nodes):
        value = value_of(node)
        if node.target is not F.interpolate or value is None or len(value.shape) != 4:
            continue
        if (made := _layer(node)) is not None:
            call_instead(graph, node, made, node.all_input_nodes[0])
    graph.recompile()
