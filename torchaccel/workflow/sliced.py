"""A model that runs a batch in slices, whose activations fit the processor's caches."""

from __future__ import annotations

import operator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from torchaccel import measure
from torchaccel.graph.trace import module_of
from torchaccel.nn import ConvChain, SparseConv2d
from torchaccel.nn._packed import PackedModule
from torchaccel.nn.add import Add
from torchaccel.nn.contiguous import Contiguous
from torchaccel.nn.upsample import Upsample

SIZES = (1, 2, 4, 8)
_LEAST_MS = 5.0  # of a batch; a shorter one has no activations that leave the caches
_LEAST_GAIN = 1.05
_BUDGET_S = 0.3
# What treats each image by itself.
_LAYERS = (
    PackedModule, ConvChain, Contiguous, Add, Upsample, nn.Conv2d, nn.Linear, nn.Flatten, nn.Identity, nn.Dropout,
    nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Sigmoid, nn.Hardswish, nn.Hardsigmoid,
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.BatchNorm2d,
)  # fmt: skip
_FUNCTIONS = (
    operator.add, operator.mul, torch.add, torch.mul, torch.relu, F.relu, F.relu6, F.silu, F.gelu,
    "add", "mul", "relu", "sigmoid",
)  # fmt: skip


class Sliced(nn.Module):
    """Runs a model for inference `size` images at a time and joins the results.

    Batches of at most `size`, inputs that require gradients and training mode run as the model itself.

    Args:
        model: takes one tensor, the batch first, treats each image by itself and gives back one tensor.
        size: images of a slice, at least 1.

    Equivalent to `torch.cat([model(part) for part in x.split(size)])`.
    """

    def __init__(self, model: nn.Module, size: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"Sliced: size is {size}, accepted is at least 1")
        self.model, self.size = model, size
        self.training = model.training

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        (x,) = (*args, *kwargs.values())
        whole = x.shape[0] <= self.size or self.training or torch.compiler.is_compiling()
        if whole or (torch.is_grad_enabled() and x.requires_grad):
            return self.model(*args, **kwargs)
        return torch.cat([self.model(part) for part in x.split(self.size)])

    def extra_repr(self) -> str:
        return f"size={self.size}"


def _by_image(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node treats each image by itself, whatever it is."""
    if node.op == "call_module":
        module = module_of(graph, node)
        keeps = not isinstance(module, nn.Flatten) or module.start_dim > 0
        return isinstance(module, _LAYERS) and keeps
    if node.target is torch.flatten or node.target == "flatten":
        return bool(len(node.args) > 1 and node.args[1] == 1)
    if node.target is torch.cat:
        return bool((node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) == 1)
    return node.op in ("placeholder", "output") or node.target in _FUNCTIONS


def can_slice(model: nn.Module) -> bool:
    """Whether a model is a graph from one tensor to one, in which no image of a batch meets another."""
    if not isinstance(model, fx.GraphModule):
        return False
    nodes = list(model.graph.nodes)
    one = sum(node.op == "placeholder" for node in nodes) == 1 and isinstance(nodes[-1].args[0], fx.Node)
    return one and all(_by_image(model, node) for node in nodes)


def sliced(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """The model in the slices that were measured fastest on `inputs`, or itself.

    Only models with sparse float layers on a CPU gain: dense ones are bound by their products.
    """
    x = inputs[0]
    sparse = any(isinstance(module, SparseConv2d) for module in model.modules())
    if not sparse or x.device.type != "cpu" or len(inputs) > 1 or x.dim() != 4 or not can_slice(model):
        return model
    forms = [model, *(Sliced(model, size) for size in SIZES if size < x.shape[0])]
    if len(forms) == 1:
        return model
    with measure.inference():
        model(x)  # chains plan at their first call
        if measure.seconds(partial(model, x)) * 1e3 < _LEAST_MS:
            return model
        times = measure.interleaved_ms([partial(form, x) for form in forms], _BUDGET_S, min_rounds=3)
    best = min(range(len(forms)), key=lambda i: times[i])
    return forms[best] if times[best] * _LEAST_GAIN < times[0] else model
