"""Folding: BatchNorm into the convolution or linear layer before it, and layers that do nothing in eval mode away.

A BatchNorm of images that has no such layer before it becomes one itself, which can be exchanged like others.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from torchaccel.graph.shapes import Value, value_of
from torchaccel.graph.trace import calls, has_hooks, module_of, read_elsewhere, set_module
from torchaccel.nn import Int8Conv2d, Int8ConvTranspose2d, Int8Linear, Int8LinearWeightOnly, SparseInt8Conv2d

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_INT8_CONVS = (Int8Conv2d, Int8ConvTranspose2d, SparseInt8Conv2d)
_INT8_LINEAR = (Int8Linear, Int8LinearWeightOnly)
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)


def _affine(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """BatchNorm in eval mode as y = x * gamma + beta, per channel."""
    assert norm.running_mean is not None and norm.running_var is not None
    gamma = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        gamma = gamma * norm.weight
    beta = -norm.running_mean * gamma
    return gamma.detach(), (beta if norm.bias is None else beta + norm.bias).detach()


def _folded(layer: nn.Module, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> nn.Module | None:
    kinds = _INT8_CONVS if isinstance(norm, nn.BatchNorm2d) else _INT8_LINEAR
    if isinstance(layer, kinds):
        if layer.activation != "none" or getattr(layer, "output_dtype", torch.float32) != torch.float32:
            return None
        layer = copy.deepcopy(layer)
        layer.fold_affine(*_affine(norm))
        return layer
    if isinstance(norm, nn.BatchNorm2d) and type(layer) is nn.Conv2d:
        return fuse_conv_bn_eval(layer, norm)
    if isinstance(norm, nn.BatchNorm2d) and type(layer) is nn.ConvTranspose2d and layer.groups == 1:
        return fuse_conv_bn_eval(layer, norm, transpose=True)
    if isinstance(norm, nn.BatchNorm1d) and type(layer) is nn.Linear:
        return fuse_linear_bn_eval(layer, norm)
    return None


def _as_conv(norm: nn.BatchNorm1d | nn.BatchNorm2d, value: Value | None) -> nn.Conv2d | None:
    """A BatchNorm of images as a depthwise convolution, in float32: the shift of a half type would lose digits."""
    gamma, beta = _affine(norm)
    if type(norm) is not nn.BatchNorm2d or value is None or not value.dtype == gamma.dtype == torch.float32:
        return None
    channels = norm.num_features
    conv = nn.Conv2d(channels, channels, 1, groups=channels, device="meta")
    trained = norm.weight is not None and norm.weight.requires_grad
    conv.weight, conv.bias = (nn.Parameter(v, trained) for v in (gamma.view(-1, 1, 1, 1), beta))
    return conv.eval()


def fold(graph: fx.GraphModule) -> None:
    """Fold in place, after `note_values`. The modules that change are replaced in `graph` by others.

    Source of the method: Jacob et al. 2018, "Quantization and Training of Neural Networks", section 3.2.
    """
    nodes_of, read = calls(graph), read_elsewhere(graph)
    for node in list(graph.graph.nodes):
        module = module_of(graph, node)
        if module is None or has_hooks(module) or not node.args:
            continue
        if isinstance(module, _NOTHING):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
        elif isinstance(module, _BATCH_NORMS) and module.running_mean is not None:
            before = node.args[0]
            layer = module_of(graph, before)
            value = value_of(before)
            if isinstance(module, nn.BatchNorm1d) and (value is None or len(value.shape) != 2):
                continue  # of [N, C, L] it normalizes C, while a linear layer ends in L
            taken = None
            if layer is not None and len(before.users) == len(nodes_of[before.target]) == len(before.args) == 1:
                taken = None if has_hooks(layer) or before.target in read else _folded(layer, module)
            if taken is not None:
                set_module(graph, before.target, taken)
                node.replace_all_uses_with(before)
                graph.graph.erase_node(node)
            elif node.target not in read and (conv := _as_conv(module, value)) is not None:
                set_module(graph, str(node.target), conv)
    graph.graph.lint()
    graph.delete_all_unused_submodules()
    graph.recompile()
