"""Lifting: convolutions and linear layers that a model calls as functions become modules, which can be exchanged.

Models with a convolution class of their own (other padding, say) record `F.conv2d(x, self.weight, ...)`; folding,
fusing and choosing know modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch.nn.functional as F
from torch import fx, nn

from torchaccel.graph.trace import calls, has_hooks, module_of, set_module

_SIGNATURES: dict[Any, tuple[str, ...]] = {
    F.conv2d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    F.linear: ("input", "weight", "bias"),
}


def _arguments(node: fx.Node) -> dict[str, Any]:
    names = _SIGNATURES[node.target]
    return dict(zip(names, node.args, strict=False)) | dict(node.kwargs)


def _parameter(graph: fx.GraphModule, node: object) -> nn.Parameter | None:
    """The parameter that a get_attr node reads, if nothing else reads it."""
    if not isinstance(node, fx.Node) or node.op != "get_attr" or len(node.users) != 1:
        return None
    owner, _, last = str(node.target).rpartition(".")
    value = getattr(graph.get_submodule(owner), last)
    return value if isinstance(value, nn.Parameter) else None


def _pair(value: object) -> tuple[int, int] | None:
    both = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, tuple | list) else ()
    return cast("tuple[int, int]", both) if len(both) == 2 and all(isinstance(v, int) for v in both) else None


def _module(target: Any, given: Mapping[str, Any], weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Module | None:
    """The module with these parameters, or None where an argument is computed by the graph or has no module form."""
    made: nn.Conv2d | nn.Linear
    if target is F.linear:
        if weight.dim() != 2:
            return None
        made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    else:
        pairs = [_pair(given.get(name, default)) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))]
        groups = given.get("groups", 1)
        if None in pairs or not isinstance(groups, int) or weight.dim() != 4:
            return None
        stride, padding, dilation = cast("list[tuple[int, int]]", pairs)
        sizes = weight.shape[1] * groups, weight.shape[0], (weight.shape[2], weight.shape[3])
        made = nn.Conv2d(*sizes, stride, padding, dilation, groups, bias is not None, device="meta")
    made.weight, made.bias = weight, bias
    return made.eval()


def _merge_padding(graph: fx.GraphModule, conv: nn.Conv2d, source: fx.Node) -> fx.Node:
    """Take zeros that a module pads with into the convolution; returns its input.

    Where one side has one more, as for an even size at stride 2, the kernel starts or ends with a zero: the padding is
    then the same on both sides, and no layer copies its input.
    """
    pad = module_of(graph, source)
    alone = len(source.users) == 1 and not (pad is not None and has_hooks(pad))
    if not isinstance(pad, nn.ZeroPad2d) or not alone or not isinstance(source.args[0], fx.Node):
        return source
    left, right, top, bottom = pad.padding
    if min(pad.padding) < 0 or max(abs(left - right), abs(top - bottom)) > 1:
        return source
    if left != right or top != bottom:
        if conv.dilation != (1, 1):
            return source
        zeros = max(right - left, 0), max(left - right, 0), max(bottom - top, 0), max(top - bottom, 0)
        conv.weight = nn.Parameter(F.pad(conv.weight.detach(), zeros), conv.weight.requires_grad)
        conv.kernel_size = cast("tuple[int, int]", tuple(conv.weight.shape[2:]))
    height, width = cast("tuple[int, int]", conv.padding)
    conv.padding = (height + max(top, bottom), width + max(left, right))
    conv._reversed_padding_repeated_twice = [conv.padding[1]] * 2 + [conv.padding[0]] * 2
    return source.args[0]


def lift(graph: fx.GraphModule) -> None:
    """Replace calls of `F.conv2d` and `F.linear` on the model's own parameters by modules, in place.

    A module is named after the owner of its weight: "block.weight" gives "block.lifted".
    """
    called = calls(graph)
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or node.target not in _SIGNATURES:
            continue
        given = _arguments(node)
        weight, bias = _parameter(graph, given.get("weight")), _parameter(graph, given.get("bias"))
        source = given.get("input")
        if weight is None or (given.get("bias") is not None and bias is None) or not isinstance(source, fx.Node):
            continue
        made = _module(node.target, given, weight, bias)
        owner = str(given["weight"].target).rpartition(".")[0]
        name = f"{owner}.lifted" if owner else f"lifted_{node.name}"
        # An owner that is called itself keeps its weight.
        if made is None or owner in called or hasattr(graph.get_submodule(owner), "lifted"):
            continue
        if isinstance(made, nn.Conv2d):
            padded, source = source, _merge_padding(graph, made, source)
        set_module(graph, name, made)
        with graph.graph.inserting_before(node):
            call = graph.graph.call_module(name, (source,))
        node.replace_all_uses_with(call)
        graph.graph.erase_node(node)
        for read in (given["weight"], given.get("bias")):
            if isinstance(read, fx.Node):
                parent, _, last = str(read.target).rpartition(".")
                graph.graph.erase_node(read)
                delattr(graph.get_submodule(parent), last)
        if isinstance(made, nn.Conv2d) and padded is not source:
            graph.graph.erase_node(padded)
    graph.graph.lint()
    graph.recompile()
