"""Fusing: activation and residual addition into the layer before them; every layer then has one form of call."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import fx, nn

from torchaccel.graph.lift_additions import OUT_OF_PLACE, is_addition, lift_addition
from torchaccel.graph.shapes import changed_between
from torchaccel.graph.trace import calls, has_hooks, module_of, read_elsewhere, set_module
from torchaccel.nn import _transposed
from torchaccel.nn.add import Add
from torchaccel.nn.dense import DenseConv2d, DenseConvTranspose2d, DenseLinear
from torchaccel.nn.scale import DenseScale

LAYERS = (DenseConv2d, DenseConvTranspose2d, DenseLinear)
Layer = DenseConv2d | DenseConvTranspose2d | DenseLinear
_STRONGEST: dict[type[nn.Module], type[Layer]] = {strongest.plain: strongest for strongest in LAYERS}


def strongest_of(layer: nn.Module) -> type[Layer] | None:
    """The strongest dense form of a plain layer, or None where it has none."""
    return DenseScale if DenseScale.serves(layer) else _STRONGEST.get(type(layer))


def layer_at(model: nn.Module, name: str) -> Layer:
    """The dense layer of that name."""
    layer = model.get_submodule(name)
    assert isinstance(layer, LAYERS), f"{name} is {type(layer).__name__}"
    return layer


_ACTIVATIONS = {
    torch.relu: "relu", torch.relu_: "relu", F.relu: "relu", "relu": "relu", "relu_": "relu",
    F.relu6: "relu6", F.gelu: "gelu", F.silu: "silu",
}  # fmt: skip


def strongest_dense(model: nn.Module, names: Iterable[str]) -> None:
    """Replace the float convolutions and linear layers among `names` by their strongest dense form, in place."""
    for name in names:
        module = model.get_submodule(name)
        overlapping = isinstance(module, nn.ConvTranspose2d) and _transposed.why_not(module) is not None
        if (strongest := strongest_of(module)) is not None and not overlapping:
            set_module(model, name, strongest.from_float(module))


def _activation(graph: fx.GraphModule, node: fx.Node) -> str | None:
    module = module_of(graph, node)
    if module is not None and has_hooks(module):
        return None
    if isinstance(module, nn.ReLU):
        return "relu"
    if isinstance(module, nn.ReLU6):
        return "relu6"
    if isinstance(module, nn.SiLU):
        return "silu"
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else None
    if node.op in ("call_function", "call_method"):
        name = _ACTIVATIONS.get(node.target)
        return None if name == "gelu" and node.kwargs.get("approximate", "none") != "none" else name
    return None


def _weights(graph: fx.GraphModule, node: fx.Node) -> int:
    module = module_of(graph, node)
    return sum(t.numel() for t in (*module.parameters(), *module.buffers())) if module is not None else 0


def _fuse_addition(graph: fx.GraphModule, node: fx.Node, single: set[str]) -> fx.Node | None:
    """Turn `add(conv(x), other)` into `conv(x, other)` at the place of the addition, where both are at hand."""
    if node.args[0] is node.args[1]:
        return None
    sides = [a for a in node.args if isinstance(a, fx.Node)]
    if node.target not in OUT_OF_PLACE and not (
        isinstance(module_of(graph, sides[0]), LAYERS) and len(sides[0].users) == 1
    ):
        return None  # it changes a tensor that others may share
    ready = [a for a in sides if _takes_residual(graph, a, node, single)]
    if not ready:
        return None
    layer = max(ready, key=lambda a: _weights(graph, a))
    other = sides[1] if sides[0] is layer else sides[0]
    with graph.graph.inserting_before(node):
        fused = graph.graph.call_module(str(layer.target), (layer.args[0], other))
    fused.meta = copy.copy(node.meta)
    node.replace_all_uses_with(fused)
    graph.graph.erase_node(node)
    graph.graph.erase_node(layer)
    return fused


def _takes_residual(graph: fx.GraphModule, node: fx.Node, addition: fx.Node, single: set[str]) -> bool:
    """Whether `node` calls a convolution that can be computed at the place of `addition`, and nobody else reads it."""
    layer = module_of(graph, node)
    return (
        isinstance(layer, DenseConv2d)
        and layer.activation == "none"
        and not has_hooks(layer)
        and str(node.target) in single
        and len(node.users) == 1
        and len(node.args) == 1
        and not changed_between(graph, node.args[0], node, addition)
    )


def _behind_pooling(graph: fx.GraphModule, node: fx.Node, activation: str) -> fx.Node:
    """What a max-pool reads that nobody else reads: an activation that never falls may as well come before it."""
    pool = module_of(graph, node)
    if activation not in ("relu", "relu6") or not isinstance(pool, nn.MaxPool2d) or has_hooks(pool):
        return node
    # Windows that lie in the padding alone, which dilation allows, have no pixel to activate.
    if len(node.users) > 1 or pool.return_indices or pool.dilation not in (1, (1, 1)):
        return node
    return node.args[0] if isinstance(node.args[0], fx.Node) else node


def fuse(graph: fx.GraphModule) -> None:
    """Replace float layers by their strongest dense form, and fuse activations and residuals into layers, in place.

    Additions of images that no layer takes become layers of their own.

    Modules keep their names. `note_values` comes before.
    """
    strongest_dense(graph, calls(graph))
    single = {name for name, nodes in calls(graph).items() if len(nodes) == 1}
    for node in list(graph.graph.nodes):
        if is_addition(node):
            _fuse_addition(graph, node, single)
    for node in list(graph.graph.nodes):
        if is_addition(node):
            lift_addition(graph, node)
            continue
        activation = _activation(graph, node)
        if activation is None or not node.args:
            continue
        before = _behind_pooling(graph, node.args[0], activation)
        layer = module_of(graph, before)
        if (
            not isinstance(layer, (*LAYERS, Add))
            or len(before.users) > 1
            or len(calls(graph)[str(before.target)]) > 1
            or layer.activation != "none"
            or has_hooks(layer)
        ):
            continue
        fused = copy.copy(layer)  # the model that was given may hold it too
        fused.fuse_activation(activation)
        set_module(graph, str(before.target), fused)
        node.replace_all_uses_with(node.args[0])
        graph.graph.erase_node(node)
    graph.graph.lint()
    graph.delete_all_unused_submodules()
    graph.recompile()


def reshape_views(graph: fx.GraphModule) -> None:
    """Turn `x.view(sizes)` into `x.reshape(sizes)`, in place, since exchanged layers return channels_last.

    A view stays one where something is changed in place through it.
    """
    end = next(node for node in graph.graph.nodes if node.op == "output")
    for node in graph.graph.nodes:
        if node.op == "call_method" and node.target == "view" and not node.kwargs:
            if not any(isinstance(a, torch.dtype) for a in node.args) and not changed_between(graph, node, node, end):
                node.target = "reshape"
    graph.recompile()


def layers(graph: fx.GraphModule) -> list[str]:
    """The layers that can be chosen; one called twice, or whose weight others read, is left as it is."""
    read = read_elsewhere(graph)
    return [
        name
        for name, nodes in calls(graph).items()
        if len(nodes) == 1 and name not in read and isinstance(graph.get_submodule(name), LAYERS)
    ]
