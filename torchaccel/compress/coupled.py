"""Which channels of a network can only go together, as torch-pruning's dependency graph finds them."""

from __future__ import annotations

import copy
import importlib
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from torchaccel.compress.removal import NORMS, is_depthwise, why_whole, widths_of

LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
Gone = dict[str, dict[str, set[int]]]
"""Layer -> {"out": channels, "in": channels} that it loses."""

_INPUT_NORMS = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def pruning_library() -> Any:
    """The package torch-pruning, imported when it is first needed.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module("torch_pruning")
    except ModuleNotFoundError as error:
        if error.name != "torch_pruning":
            raise
        raise ImportError(
            "removing channels needs torch-pruning: `pip install torch-pruning`, the extra torchaccel[channel]"
        ) from error


@dataclass(frozen=True)
class Coupled:
    """Layers whose output channels go together, numbered as the outputs of the first of them.

    Attributes:
        layers: linear and convolution layers, by name.
        scores: [channels] float32, the mean square over layers of the weights that each channel meets.
        parts: channels go in the same places of so many equal parts, where the model splits them or groups read them.
        reason: why all of them stay, or None.
    """

    layers: list[str]
    scores: Tensor
    parts: int
    reason: str | None
    _graph: Any
    _group: Any
    _names: dict[nn.Module, str]

    def gone(self, channels: Sequence[int]) -> Gone:
        """What every layer loses when these channels go."""
        root = self._group[0].dep
        group = self._graph.get_pruning_group(root.target.module, root.handler, list(channels))
        found: Gone = {}
        for dep, indices in group:
            name = self._names.get(dep.target.module)
            if name is not None and widths_of(dep.target.module):
                sides = found.setdefault(name, {"out": set(), "in": set()})
                sides[_side(self._graph, dep)].update(indices)
        return found


class _Enclosed(nn.Module):
    """A model between norms of its inputs and a product of its outputs, by which their channels are told from others.

    The dependency graph sees neither inputs nor what the last layers are by itself.
    """

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.model = model
        self.inputs = nn.ModuleList(
            _INPUT_NORMS[x.dim()](x.shape[1], device=x.device, dtype=x.dtype)
            if x.is_floating_point() and x.dim() in _INPUT_NORMS
            else nn.Identity()
            for x in inputs
        )

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        outputs = self.model(*(norm(x) for norm, x in zip(self.inputs, inputs, strict=True)))
        found = [y * 1 for y in tree_leaves(outputs) if isinstance(y, Tensor) and y.requires_grad]
        if not found:
            raise ValueError("no output of the model depends on its weights in a way that autograd records")
        return found


def _side(graph: Any, dep: Any) -> str:
    """Whether a step of a group takes outputs or inputs of a layer."""
    module = dep.target.module
    one = is_depthwise(module) or isinstance(module, (*NORMS, nn.PReLU))
    return "out" if one or graph.is_out_channel_pruning_fn(dep.handler) else "in"


def _traced(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """The dependency graph of a model that is this function's to change."""
    library = pruning_library()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    graph = library.DependencyGraph()
    # The graph is read from the names of gradients' functions; the tensors that they would save are not needed.
    drop = torch.autograd.graph.saved_tensors_hooks(lambda tensor: None, lambda nothing: nothing)
    with torch.enable_grad(), drop, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about parameters outside of layers, which are refused below
        return graph.build_dependency(
            _Enclosed(model, inputs), inputs, forward_fn=lambda model, inputs: model(*inputs), verbose=False
        )


def coupled_channels(model: nn.Module, inputs: tuple[Tensor, ...]) -> Iterator[Coupled]:
    """The groups of output channels of a model's linear and convolution layers, in the order of the model.

    Raises:
        ImportError: torch-pruning is not installed.
        ValueError: the model does not run on the inputs or cannot be recorded.
    """
    library = pruning_library()
    try:
        model = copy.deepcopy(model).eval()
        graph = _traced(model, inputs)
        groups = list(graph.get_all_groups(root_module_types=list(LAYERS)))
    except Exception as error:
        raise ValueError(
            f"remove_channels_: {type(model).__name__} cannot be recorded on the example inputs: "
            f"{type(error).__name__}: {error}"
        ) from error
    magnitude = library.importance.GroupMagnitudeImportance(p=2, normalizer=None)
    names: dict[nn.Module, str] = {}
    for name, module in model.named_modules():
        names.setdefault(module, name)
    parameters = {id(p): name for name, p in model.named_parameters()}
    for group in groups:
        layers = {
            names[dep.target.module]: None
            for dep, _ in group
            if isinstance(dep.target.module, LAYERS) and _side(graph, dep) == "out" and dep.target.module in names
        }
        reason = _why_whole(model, group, names, parameters)
        scores = torch.empty(0)
        try:
            scores = magnitude(group).float()
        except IndexError:  # where what is split is added and joined again, or pixels are shuffled
            reason = reason or "torch-pruning loses its channels where the model splits, joins or reshapes them"
        yield Coupled(list(layers), scores, _parts(group), reason, graph, group, names)


def _why_whole(model: nn.Module, group: Any, names: dict[nn.Module, str], parameters: dict[int, str]) -> str | None:
    """Why a group keeps all channels, or None."""
    owners = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    for dep, _ in group:
        module = dep.target.module
        if isinstance(module, nn.Parameter):
            return f"its channels meet the parameter {parameters.get(id(module), '?')!r}"
        if type(module).__name__ == "_OutputOp":
            return "its channels are the model's output"
        if module not in names:
            if isinstance(module, NORMS):
                return "its channels meet the model's input"
            continue
        if (reason := why_whole(module)) is not None:
            return f"its channels meet {names[module]!r}: {reason}"
        if any(owners[id(p)] > 1 for p in module.parameters(recurse=False)):
            return f"its channels meet {names[module]!r}, which shares parameters with another layer"
    return None


def _parts(group: Any) -> int:
    found = [1]
    for dep, _ in group:
        module = dep.target.module
        if isinstance(module, nn.modules.conv._ConvNd) and not is_depthwise(module):
            found.append(module.groups)
        sizes = getattr(module, "split_sizes", None)
        if sizes and len(set(sizes)) == 1:
            found.append(len(sizes))
    return math.lcm(*found)
