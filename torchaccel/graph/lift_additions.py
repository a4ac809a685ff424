"""Lifting of additions: those of activations that no convolution takes as its residual become modules."""

from __future__ import annotations

import operator

import torch
from torch import fx

from torchaccel.graph.shapes import is_fresh, value_of
from torchaccel.graph.trace import call_instead
from torchaccel.nn.add import Add

OUT_OF_PLACE = (operator.add, torch.add, "add")
_ADDITIONS = (*OUT_OF_PLACE, operator.iadd, "add_")


def is_addition(node: fx.Node) -> bool:
    """Whether a node adds two tensors of one shape and dtype, rather than a number or what is broadcast."""
    if node.op not in ("call_function", "call_method") or node.target not in _ADDITIONS:
        return False
    values = [value_of(a) for a in node.args]
    return len(values) == 2 and not node.kwargs and values[0] is not None and values[0] == values[1]


def lift_addition(graph: fx.GraphModule, node: fx.Node) -> None:
    """Replace an addition of images by a module, in place, unless it changes a tensor that others may share."""
    value, (left, right) = value_of(node), node.args
    assert isinstance(left, fx.Node) and isinstance(right, fx.Node)
    if value is None or len(value.shape) != 4 or not value.dtype.is_floating_point:
        return
    if node.target not in OUT_OF_PLACE and (len(left.users) > 1 or not is_fresh(graph, left)):
        return
    call_instead(graph, node, Add(), left, right)
