"""cluster_channels_: an order of channels in which like weights share tiles, before tiles are pruned."""

from __future__ import annotations

from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from torchaccel.ops import blocks

Layer = nn.Linear | nn.Conv2d

# What may stand between two layers and leaves each channel to itself. BatchNorm1d is left out: whether its channels are
# the features of a linear layer depends on the shape of its input.
_ELEMENTWISE = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Identity, nn.Dropout)
_OF_IMAGES = (nn.BatchNorm2d, nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_FUNCTIONS = (torch.relu, F.relu, F.relu6, F.gelu, F.silu, "relu", "relu_")
_ROUNDS = 8
_TILE, _ = blocks.block_of("tile")


def _layer(module: nn.Module) -> Layer | None:
    """The module, if its channels may change places: one group, and no mask that would have to follow."""
    if type(module) is nn.Linear or (type(module) is nn.Conv2d and module.groups == 1):
        return module
    return None


def _pairs(model: nn.Module) -> list[tuple[Layer, list[nn.BatchNorm2d], Layer]]:
    """(layer, BatchNorms, next layer) wherever nothing else sees the channels in between."""
    graph = fx.symbolic_trace(model).graph
    modules = dict(model.named_modules(remove_duplicate=False))
    called = Counter(id(modules[str(node.target)]) for node in graph.nodes if node.op == "call_module")
    owners = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    read = tuple(str(node.target) for node in graph.nodes if node.op == "get_attr")

    def hooked(name: str) -> bool:
        return bool(modules[name]._forward_hooks or modules[name]._forward_pre_hooks)

    def alone(name: str) -> bool:
        shared = any(owners[id(p)] > 1 for p in modules[name].parameters())
        seen = hooked(name) or shared or any(r.startswith(f"{name}.") for r in read)
        return called[id(modules[name])] == 1 and not seen

    def layer(node: fx.Node) -> Layer | None:
        name = str(node.target)
        return _layer(modules[name]) if node.op == "call_module" and alone(name) else None

    def passes(node: fx.Node, first: Layer) -> bool:
        if node.op != "call_module":
            return node.target in _FUNCTIONS
        name = str(node.target)
        module = modules[name]
        if hooked(name) or (isinstance(module, nn.BatchNorm2d) and not alone(name)):
            return False
        return isinstance(module, _ELEMENTWISE) or (isinstance(first, nn.Conv2d) and isinstance(module, _OF_IMAGES))

    found = []
    for node in graph.nodes:
        first = layer(node)
        norms: list[nn.BatchNorm2d] = []
        while first is not None and len(node.users) == 1:
            (node,) = node.users
            if (second := layer(node)) is not None:
                if type(second) is type(first) and first.weight.shape[0] == second.weight.shape[1]:
                    found.append((first, norms, second))
                break
            if not passes(node, first):
                break
            if node.op == "call_module" and isinstance(norm := modules[str(node.target)], nn.BatchNorm2d):
                norms.append(norm)
    return found


def _energies(first: Layer, second: Layer) -> list[Tensor]:
    """For each of the two layers that tiles fit, [channels between them, tiles across]: its share of the squares."""
    parts = []
    for weight, rows in ((first.weight, True), (second.weight, False)):
        if blocks.fits("tile", weight.shape[0], weight.shape[1]) is not None:
            continue
        squares = blocks.matrix_of(weight.detach().to(torch.float32).square())  # [O, taps * C]
        if rows:
            parts.append(squares.view(weight.shape[0], -1, _TILE).sum(2))
        else:
            across = squares.view(-1, _TILE, squares.shape[1] // weight.shape[1], weight.shape[1]).sum(1)
            parts.append(across.flatten(0, 1).t())
        parts[-1] = parts[-1] / parts[-1].sum().clamp(min=torch.finfo(torch.float32).tiny)
    return parts


def _kept(parts: list[Tensor], order: Tensor, amount: float) -> float:
    """The share of the squares that survives when the `amount` of tiles with the smallest norms goes."""
    kept = 0.0
    for part in parts:
        tiles = part[order].view(-1, _TILE, part.shape[1]).sum(1).flatten()
        kept += float(tiles.topk(max(tiles.numel() - round(amount * tiles.numel()), 1)).values.sum())
    return kept


def _best_order(parts: list[Tensor], amount: float) -> Tensor | None:
    """The order that keeps most, from balanced clusters of 64 channels; None where the present one is as good."""
    features = F.normalize(torch.cat([part.sqrt() for part in parts], 1))
    channels = features.shape[0]
    best, kept = None, _kept(parts, torch.arange(channels, device=features.device), amount) * (1 + 1e-6)
    order = (features @ features.mean(0)).argsort()  # seeds: from the most to the least unlike the mean
    for _ in range(_ROUNDS):
        centres = F.normalize(features[order].view(-1, _TILE, features.shape[1]).mean(1))
        affinity = features @ centres.t()  # [channels, clusters]
        free = torch.ones(channels, dtype=torch.bool, device=features.device)
        taken = []
        for cluster in range(centres.shape[0]):
            # Those that prefer it most to what the later clusters offer.
            rest = affinity[:, cluster + 1 :]
            gain = affinity[:, cluster] - (rest.amax(1) if rest.shape[1] else 0.0)
            chosen = gain.masked_fill(~free, -torch.inf).topk(_TILE).indices
            free[chosen] = False
            taken.append(chosen.sort().values)
        order = torch.cat(taken)
        if (now := _kept(parts, order, amount)) > kept:
            best, kept = order, now
    return best


@torch.no_grad()
def _permute(first: Layer, norms: list[nn.BatchNorm2d], second: Layer, order: Tensor) -> None:
    """Put the channels between two layers in another order, in place: the function stays the same."""
    for module in (first, *norms):
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.dim():  # all but BatchNorm's count of batches
                tensor.copy_(tensor[order])
    second.weight.copy_(second.weight[:, order])


def cluster_channels_(model: nn.Module, amount: float) -> int:
    """Reorder channels between neighbouring layers so that pruning whole tiles loses less, in place.

    Where a convolution or linear layer reads another one alone (with BatchNorm, an activation or pooling in between),
    the channels between them may change places without a change of the function. They are grouped in 64s by what they
    are connected to, wherever that raises the norm that `Sparsity("tile", amount)` keeps.

    Args:
        model: a float module that torch.fx can trace, without masks yet; changed in place, before an optimizer.
        amount: the share of tiles that will be pruned, above 0 and below 1.

    Returns:
        How many groups of channels were reordered.

    Raises:
        ValueError: another amount, or a model that cannot be traced.

    Source: balanced clustering after Pool and Yu, Channel Permutations for N:M Sparsity, 2021, with tiles for a norm.
    """
    if not 0 < amount < 1:
        raise ValueError(f"cluster_channels_: amount is {amount}, accepted is a number above 0 and below 1")
    try:
        pairs = _pairs(model)
    except Exception as error:  # whatever the model's own code raises under tracing
        raise ValueError(f"cluster_channels_: the model cannot be traced: {error}") from error
    changed = 0
    for first, norms, second in pairs:
        parts = _energies(first, second) if first.weight.shape[0] % _TILE == 0 else []
        order = _best_order(parts, amount) if parts else None
        if order is not None:
            _permute(first, norms, second, order)
            changed += 1
    return changed
