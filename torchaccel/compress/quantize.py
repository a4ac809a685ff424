"""quantize_: every linear and convolution layer of a model swapped for its int8 counterpart."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from torchaccel.compress.calibrate import calibrate
from torchaccel.compress.configs import Int8Config, Int8Static, check_config
from torchaccel.compress.convert import int8_module, stored_pattern, why_not
from torchaccel.compress.masks import mask_of
from torchaccel.compress.readers import why_kept


@dataclass(frozen=True)
class Quantized:
    """What `quantize_` did.

    Attributes:
        swapped: the new class, by layer.
        kept: why a linear or convolution layer stayed float, by layer.
    """

    swapped: dict[str, str]
    kept: dict[str, str]


def _pattern(module: nn.Module) -> str | None:
    """The blocks in which a pruned convolution is kept, or None: dense."""
    mask = mask_of(module)
    return None if mask is None else stored_pattern(module, mask.pattern, mask.mask.device)


def quantize_(
    model: nn.Module,
    config: Int8Config,
    calibration: Iterable | None = None,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
) -> Quantized:
    """Swap every `nn.Linear`, `nn.Conv2d` and `nn.ConvTranspose2d` for an int8 layer, in place, for inference.

    Layers stay float, with the reason, where another module reads their weights by itself (`why_kept`), where they
    have hooks or a forward of their own, and where int8 cannot serve them (on CUDA, convolutions of several groups;
    transposed convolutions whose stride is not their kernel). A
    module registered under several names is swapped once and stays shared. A parameter that two modules share, such as
    an embedding and the output layer, is copied: the embedding stays float. Convolutions that `sparsify_` pruned in
    blocks become sparse where a kernel skips those.

    Args:
        model: a float module; unchanged if this raises. The model itself is not swapped, only what it contains.
        config: `Int8Static()` (needs `calibration`), `Int8Dynamic()` or `Int8WeightOnly()` (linear layers alone).
        calibration: yields tensors, or tuples whose first item is the model's input.
        filter_fn: `filter_fn(module, name) -> bool` says which linear and convolution layers to swap.

    Returns:
        What was swapped, and what was kept with the reason.

    Raises:
        ValueError: another config, no calibration for `Int8Static`, or what `calibrate` raises.
    """
    check_config("quantize_", config)
    if isinstance(config, Int8Static) and calibration is None:
        raise ValueError("quantize_: Int8Static needs calibration, accepted is an iterable of input batches")
    found = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)}
    kept = why_kept(model)
    for name, module in found.items():
        if name in kept:
            continue
        reason = why_not(module)
        if name == "":
            reason = "a model cannot be swapped for another in place; wrap it, as in nn.Sequential(model)"
        if reason is None and filter_fn is not None and not filter_fn(module, name):
            reason = "filter_fn left it out"
        if reason is not None:
            kept[name] = reason
    chosen = [name for name in found if name not in kept]
    ranges = {}
    if isinstance(config, Int8Static) and calibration is not None:
        ranges = calibrate(model, chosen, calibration, config)
    made: dict[int, nn.Module] = {}
    swapped = {}
    for name in chosen:
        try:
            new: Any = int8_module(found[name], config, ranges.get(name), _pattern(found[name]))
        except ValueError as error:
            kept[name] = str(error)
            continue
        if (reason := new.limits(found[name].weight.device)) is not None:
            kept[name] = reason
            continue
        made[id(found[name])] = new
        swapped[name] = type(new).__name__
    _swap(model, made)
    return Quantized(swapped, {name: kept[name] for name in found if name in kept})


def _swap(model: nn.Module, made: dict[int, nn.Module]) -> None:
    """Put each new module wherever the one with that id is registered."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if id(child) in made:
                parent._modules[name] = made[id(child)]
