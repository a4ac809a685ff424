"""Folding: BatchNorm into the convolution or linear layer before it, and layers that do nothing in eval mode away."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from torchaccel.graph.trace import calls, module_of, set_module
from torchaccel.nn import Int8Conv2d, Int8Linear, SparseInt8Conv2d

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)


def _affine(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """BatchNorm in eval mode as y = x * gamma + beta, per channel."""
    assert norm.running_mean is not None and norm.running_var is not None
    gamma = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        gamma = gamma * norm.weight
    beta = -norm.running_mean * gamma
    return gamma.detach(), (beta if norm.bias is None else beta + norm.bias).detach()


def _folded(layer: nn.Module, norm: nn.Module) -> nn.Module | None:
    if isinstance(norm, nn.BatchNorm2d) and isinstance(layer, Int8Conv2d | SparseInt8Conv2d):
        layer.fold_affine(*_affine(norm))
        return layer
    if isinstance(norm, nn.BatchNorm1d) and isinstance(layer, Int8Linear):
        layer.fold_affine(*_affine(norm))
        return layer
    if isinstance(norm, nn.BatchNorm2d) and type(layer) is nn.Conv2d:
        return fuse_conv_bn_eval(layer, norm)
    if isinstance(norm, nn.BatchNorm1d) and type(layer) is nn.Linear:
        return fuse_linear_bn_eval(layer, norm)
    return None


def fold(graph: fx.GraphModule) -> None:
    """Fold in place. The modules that change are replaced in `graph`, so give it a copy of the user's model.

    Source of the method: Jacob et al. 2018, "Quantization and Training of Neural Networks", section 3.2.
    """
    nodes_of = calls(graph)
    for node in list(graph.graph.nodes):
        module = module_of(graph, node)
        if isinstance(module, _NOTHING):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
        elif isinstance(module, _BATCH_NORMS) and module.track_running_stats:
            before = node.args[0]
            layer = module_of(graph, before)
            if layer is None or len(before.users) > 1 or len(nodes_of[before.target]) > 1:
                continue
            folded = _folded(layer, module)
            if folded is None:
                continue
            set_module(graph, before.target, folded)
            node.replace_all_uses_with(before)
            graph.graph.erase_node(node)
    graph.graph.lint()
    graph.delete_all_unused_submodules()
    graph.recompile()
