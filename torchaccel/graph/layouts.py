"""Layouts: where sparse float layers are the rule, their activations stay contiguous (NCHW) on a CPU.

Dense layers hand channels_last on. A sparse layer takes either and gives back what it got, but works faster on rows of
pixels, so what a chain of them begins with is copied once.
"""

from __future__ import annotations

import torch
from torch import fx, nn

from torchaccel.graph.trace import module_of
from torchaccel.nn import SparseConv2d
from torchaccel.nn._int8_conv import Int8Conv
from torchaccel.nn.add import Add
from torchaccel.nn.contiguous import Contiguous
from torchaccel.nn.scale import DenseScale
from torchaccel.nn.upsample import Upsample

_CONVOLUTIONS = (nn.Conv2d, Int8Conv, SparseConv2d)
_KEEPING = (nn.MaxPool2d, Upsample, Add, DenseScale)  # the layout of their input


def _native_on_cpu(module: nn.Module | None) -> bool:
    if not isinstance(module, SparseConv2d) or module.values.device.type != "cpu":
        return False
    return module.unsupported(torch.device("cpu")) is None


def _shaped_by(graph: fx.GraphModule, node: fx.Node) -> fx.Node:
    """What a value has its layout from."""
    while isinstance(module_of(graph, node), _KEEPING) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def keep_contiguous(graph: fx.GraphModule) -> None:
    """Copy what enters chains of sparse float layers, in place, if most convolutions of the graph are such layers."""
    called = [(node, module_of(graph, node)) for node in graph.graph.nodes]
    convolutions = [n for n, module in called if isinstance(module, _CONVOLUTIONS) and not isinstance(module, _KEEPING)]
    sparse = [node for node in convolutions if _native_on_cpu(module_of(graph, node))]
    if 2 * len(sparse) <= len(convolutions):
        return
    for source in dict.fromkeys(node.args[0] for node in sparse):
        origin = _shaped_by(graph, source)
        if origin in sparse or isinstance(module_of(graph, origin), Contiguous):
            continue
        name = f"contiguous_{source.name}"
        graph.add_submodule(name, Contiguous())
        with graph.graph.inserting_after(source):
            copied = graph.graph.call_module(name, (source,))
        for user in [user for user in source.users if user in sparse]:
            user.replace_input_with(source, copied)


def forget_contiguous(graph: fx.GraphModule) -> None:
    """Undo `keep_contiguous`, in place."""
    for node in list(graph.graph.nodes):
        if isinstance(module_of(graph, node), Contiguous):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
