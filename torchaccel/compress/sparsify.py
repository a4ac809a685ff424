"""sparsify_: magnitude pruning of a model's layers in a pattern that the sparse kernels serve."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from torchaccel.compress import masks, patterns
from torchaccel.ops import blocks

SCOPES = ("layer", "global")
CHANNEL = "channel"
_MIN_CHANNELS = 16


@dataclass(frozen=True)
class Sparsity:
    """Which weights to prune.

    Args:
        pattern: "unstructured"; "1x4", "4x4" or "16x1" (output channels x input channels, at one kernel position);
            "tile", 64x64, what a GPU kernel skips; "2:4" (two of four neighbouring input channels); or "tile+2:4",
            tiles of 64x128 and 2:4 within those that stay; or "channel", which `optimize` removes for real, see
            `remove_channels_`.
        amount: the share to prune, at least 0 and below 1; exactly 0.5 for "2:4", at least that for "tile+2:4".
        steps: ascending amounts of gradual pruning, the last one `amount`; None prunes at once.
        scope: "layer" prunes the same share everywhere, "global" the smallest blocks of all layers together; "layer"
            alone for "channel".

    Raises:
        ValueError: any of these is outside of what is accepted.
    """

    pattern: str
    amount: float
    steps: tuple[float, ...] | None = None
    scope: str = "layer"

    def __post_init__(self) -> None:
        if self.pattern not in (*patterns.PATTERNS, CHANNEL):
            accepted = ", ".join((*patterns.PATTERNS, CHANNEL))
            raise ValueError(f"Sparsity: pattern is {self.pattern!r}, accepted are {accepted}")
        if self.scope not in SCOPES:
            raise ValueError(f"Sparsity: scope is {self.scope!r}, accepted are {', '.join(SCOPES)}")
        if self.pattern == CHANNEL and self.scope != "layer":
            raise ValueError(f"Sparsity: scope is {self.scope!r}, accepted for channel is layer")
        if not 0 <= self.amount < 1:
            raise ValueError(f"Sparsity: amount is {self.amount}, accepted is a number from 0 to below 1")
        if self.pattern == "2:4" and self.amount != 0.5:
            raise ValueError(
                f"Sparsity: amount is {self.amount}, accepted for 2:4 is 0.5, which it prunes by definition"
            )
        if self.pattern == "tile+2:4" and min((self.amount, *(self.steps or ()))) < 0.5:
            given = f"amount is {self.amount}" + (f", steps is {self.steps}" if self.steps else "")
            raise ValueError(f"Sparsity: {given}, accepted for tile+2:4 is at least 0.5, which 2:4 prunes of each tile")
        if self.steps is None:
            return
        object.__setattr__(self, "steps", tuple(self.steps))
        ascending = all(a < b for a, b in zip(self.steps, self.steps[1:], strict=False))
        if not self.steps or not ascending or self.steps[0] < 0 or not math.isclose(self.steps[-1], self.amount):
            raise ValueError(
                f"Sparsity: steps is {self.steps}, accepted are ascending amounts that end in amount={self.amount}"
            )
        if self.pattern == "2:4" and len(self.steps) > 1:
            raise ValueError(f"Sparsity: steps is {self.steps}, accepted for 2:4 is None: it has no smaller amounts")


@dataclass(frozen=True)
class Sparsified:
    """What `sparsify_` did.

    Attributes:
        pruned: the share of zeros, 0 to 1, by layer.
        kept: why a linear or convolution layer stayed dense, by layer.
    """

    pruned: dict[str, float]
    kept: dict[str, str]


def _why_dense(module: nn.Linear | nn.Conv2d, ends: set[int]) -> str | None:
    """Why a layer stays dense unless `filter_fn` says otherwise, or None."""
    if id(module) in ends:
        return "the first and the last layer stay dense; filter_fn can select them"
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        return f"depthwise and grouped convolutions stay dense (groups={module.groups}); filter_fn can select them"
    channels = module.in_channels if isinstance(module, nn.Conv2d) else module.in_features
    if channels < _MIN_CHANNELS:
        return f"fewer than {_MIN_CHANNELS} input channels stay dense (C={channels}); filter_fn can select them"
    return None


def _why_impossible(name: str, module: nn.Linear | nn.Conv2d, pattern: str) -> str | None:
    """Why a layer cannot be pruned in the pattern, or None; raises ValueError for what the caller must settle."""
    present = masks.mask_of(module)
    if present is None:
        if parametrize.is_parametrized(module, "weight"):
            return "its weight has a parametrization of another kind"
        if not isinstance(module.weight, nn.Parameter):
            return "its weight is no parameter: another tool computes it"
        if isinstance(module.weight, nn.parameter.UninitializedParameter):
            return "its shape is not known yet: run the model once"
    elif present.pattern != pattern:
        raise ValueError(
            f"sparsify_: {name!r} already has a mask of pattern {present.pattern!r}, given is {pattern!r}; "
            "call finalize_masks_ first"
        )
    weight = module.weight
    if (reason := blocks.fits(pattern, weight.shape[0], weight.shape[1])) is not None:
        return reason
    if not torch.isfinite(weight).all():
        raise ValueError(f"sparsify_: the weight of {name!r} holds NaN or an infinity, accepted are finite weights")
    return None


def choose_layers(
    model: nn.Module, pattern: str, filter_fn: Callable[[nn.Module, str], bool] | None
) -> tuple[dict[str, nn.Linear | nn.Conv2d], dict[str, str]]:
    """The layers that `sparsify_` prunes, and why it keeps the others dense; raises what it raises."""
    found = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    ends = {id(m) for m in [*found.values()][:1] + [*found.values()][-1:]}
    layers, kept = {}, {}
    for name, module in found.items():
        if filter_fn is None:
            reason = _why_dense(module, ends)
        else:
            reason = None if filter_fn(module, name) else "filter_fn left it out"
        reason = reason or _why_impossible(name, module, pattern)
        if reason is None:
            layers[name] = module
        else:
            kept[name] = reason
    return layers, kept


def _new_masks(layers: dict[str, nn.Linear | nn.Conv2d], sparsity: Sparsity) -> dict[str, Tensor]:
    """The mask of each layer. What is pruned already scores zero and stays pruned."""
    within, amount = {}, sparsity.amount
    if sparsity.pattern in blocks.TWO_FOUR:
        within = {name: patterns.two_of_four(m.weight) for name, m in layers.items()}
        amount = 2 * amount - 1  # of the tiles: half of what stays goes
    if sparsity.pattern == "2:4":
        return within
    score = {
        name: patterns.scores(torch.where(within[name], m.weight, 0) if within else m.weight, sparsity.pattern)
        for name, m in layers.items()
    }
    if sparsity.scope == "layer" or not layers:
        kept = {name: patterns.largest(s, amount) for name, s in score.items()}
    else:
        together = patterns.largest(torch.cat([s.flatten().cpu() for s in score.values()]), amount)
        parts = together.split([s.numel() for s in score.values()])
        # A layer that lost everything would cut the network in two: it keeps its largest block.
        kept = {
            name: part.view(s.shape).to(s.device) | ((s == s.max()) & (not part.any()))
            for (name, s), part in zip(score.items(), parts, strict=True)
        }
    new = {name: patterns.expand(k, sparsity.pattern, layers[name].weight.shape) for name, k in kept.items()}
    return {name: mask & within[name] for name, mask in new.items()} if within else new


def sparsify_(
    model: nn.Module, sparsity: Sparsity, filter_fn: Callable[[nn.Module, str], bool] | None = None
) -> Sparsified:
    """Prune the weights of smallest magnitude, in place, with masks that hold while the model trains on.

    A block's magnitude is its Euclidean norm. The masks are parametrizations (`torch.nn.utils.parametrize`): they
    survive training steps, `state_dict` and deepcopy, and parameters keep their identity, so an optimizer made before
    goes on working. A second call with a higher amount tightens them; pruned weights never come back.
    `finalize_masks_` bakes them in.

    By default the first and the last layer, grouped and depthwise convolutions and layers with fewer than 16 input
    channels stay dense.

    Args:
        model: any module with `nn.Conv2d` or `nn.Linear` layers; unchanged if this raises.
        sparsity: pattern, amount and scope; prunes to `amount` at once, whatever its `steps`.
        filter_fn: `filter_fn(module, name) -> bool` says which linear and convolution layers to prune, in place of the
            defaults; layers that cannot be cut into the pattern's blocks stay dense all the same.

    Returns:
        What was pruned, and what was kept with the reason.

    Raises:
        ValueError: weights that are not finite, a mask of another pattern, or the pattern "channel".

    Source: magnitude pruning as in Han et al., Learning both Weights and Connections, 2015; gradual as in Zhu and
    Gupta, To prune, or not to prune, 2017.
    """
    if sparsity.pattern == CHANNEL:
        raise ValueError(
            "sparsify_: pattern is 'channel', accepted are those of masks; remove_channels_ removes channels"
        )
    layers, kept = choose_layers(model, sparsity.pattern, filter_fn)
    with torch.no_grad():
        new = _new_masks(layers, sparsity)
        for name, module in layers.items():
            if (present := masks.mask_of(module)) is not None:
                new[name] &= present.mask
        for name, module in layers.items():
            masks.set_mask(module, new[name], sparsity.pattern)
    return Sparsified({name: patterns.sparsity_of(new[name]) for name in layers}, kept)
