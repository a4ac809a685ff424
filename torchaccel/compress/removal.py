"""Taking channels out of layers, in place, and the record of it by which a checkpoint is loaded without any search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

Widths = dict[str, dict[str, list[int]]]
"""Layer -> {"out": [channels now, channels before], "in": likewise}, for what has fewer than it was built with."""

_RECORD = "torchaccel_channels"
NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
_CONV = nn.modules.conv._ConvNd
_TRANSPOSED = nn.modules.conv._ConvTransposeNd


@dataclass
class Kept:
    """Which channels a layer keeps: indices in ascending order, or None for all."""

    out: Tensor | None = None  # [channels that remain] int64; of a depthwise layer or a norm, inputs as well
    into: Tensor | None = None


def is_depthwise(module: nn.Module) -> bool:
    """Whether each output channel of a convolution reads the input channel of its number alone."""
    return isinstance(module, _CONV) and 1 < module.groups == module.in_channels == module.out_channels


def why_whole(module: nn.Module) -> str | None:
    """Why no channels can be taken out of a module, or None."""
    if not isinstance(module, (*NORMS, _CONV, nn.Linear, nn.PReLU)):
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            return f"{type(module).__name__} normalizes over channels, so that without some the others would change"
        return f"channels are not taken out of {type(module).__name__}"
    if parametrize.is_parametrized(module):
        return "it has a mask or another parametrization; finalize_masks_ bakes masks in"
    if isinstance(getattr(module, "weight", None), Tensor) and "weight" not in module._parameters:
        return "its weight is no parameter: another tool computes it"
    return None


def widths_of(module: nn.Module) -> dict[str, int]:
    """How many channels a layer has: `out`, and `in` where it has inputs of another number."""
    if isinstance(module, nn.PReLU):
        return {"out": module.num_parameters} if module.num_parameters > 1 else {}
    if isinstance(module, NORMS):
        return {"out": module.num_features}
    if is_depthwise(module):
        return {"out": module.out_channels}  # type: ignore[dict-item]
    if isinstance(module, _CONV):
        return {"out": module.out_channels, "in": module.in_channels}
    if isinstance(module, nn.Linear):
        return {"out": module.out_features, "in": module.in_features}
    return {}


def _of_groups(kept: Tensor, channels: int, groups: int) -> Tensor:
    """The places that are kept within each group of a grouped convolution, the same in all: [places]."""
    if len(kept) % groups == 0:
        within = kept.view(groups, -1) - torch.arange(groups, device=kept.device)[:, None] * (channels // groups)
        if bool((within == within[0]).all()) and bool((within[0] >= 0).all()):
            return within[0]
    raise ValueError(f"a convolution with groups={groups} must lose the same channels in each group")


def _parts(module: nn.Module, kept: Kept) -> tuple[dict[str, Tensor | None], dict[str, int]]:
    """The parameters and buffers of a layer without the channels that go, and its numbers of channels."""
    tensors: dict[str, Tensor | None] = {}
    numbers: dict[str, int] = {}

    def select(name: str, dim: int, index: Tensor | None) -> None:
        tensor = tensors.get(name, getattr(module, name, None))
        if tensor is not None and index is not None:
            last = tensor.dim() == 4 and not tensor.is_contiguous()
            layout = torch.channels_last if last else torch.contiguous_format
            tensors[name] = tensor.detach().index_select(dim, index.to(tensor.device)).contiguous(memory_format=layout)

    if isinstance(module, (*NORMS, nn.PReLU)) or is_depthwise(module):
        for name in ("weight", "bias", "running_mean", "running_var"):
            select(name, 0, kept.out)
        if kept.out is None:
            return {}, {}
        if is_depthwise(module):
            return tensors, dict.fromkeys(("in_channels", "out_channels", "groups"), len(kept.out))
        return tensors, {"num_parameters" if isinstance(module, nn.PReLU) else "num_features": len(kept.out)}
    features = "features" if isinstance(module, nn.Linear) else "channels"
    groups = int(getattr(module, "groups", 1))
    outputs, inputs = (1, 0) if isinstance(module, _TRANSPOSED) else (0, 1)
    for side, index, dim in (("out", kept.out, outputs), ("in", kept.into, inputs)):
        if index is None:
            continue
        numbers[f"{side}_{features}"] = len(index)
        if groups > 1:
            within = _of_groups(index, getattr(module, f"{side}_{features}"), groups)
            index = within if dim == 1 else index
        select("weight", dim, index)
        if side == "out":
            select("bias", 0, kept.out)
    return tensors, numbers


def narrow_(model: nn.Module, kept: Mapping[str, Kept]) -> None:
    """Take all channels but the kept ones out of layers, in place; either all layers change or none.

    Modules stay the same objects, with their hooks, modes and names. Parameters are new ones, so that an optimizer has
    to be made anew; they require gradients as before.

    Args:
        model: holds the layers; also under the meta device.
        kept: layer name -> what it keeps.

    Raises:
        ValueError: a layer that cannot lose these channels; the message names it.
        AttributeError: a name that the model lacks.
    """
    done: list[tuple[nn.Module, dict[str, Tensor | None], dict[str, int]]] = []
    record = record_of(model)
    for name, what in kept.items():
        module = model.get_submodule(name)
        if (reason := why_whole(module)) is not None:
            raise ValueError(f"{name!r}: {reason}")
        try:
            done.append((module, *_parts(module, what)))
        except (ValueError, IndexError) as error:
            raise ValueError(f"{name!r}: {error}") from error
        for side, index in (("out", what.out), ("in", what.into)):
            before = widths_of(module).get(side)
            if index is not None and before is not None:
                first = record.get(name, {}).get(side, [before, before])[1]
                record.setdefault(name, {})[side] = [len(index), first]
    for module, tensors, numbers in done:
        for key, tensor in tensors.items():
            assert tensor is not None
            if (old := module._parameters.get(key)) is not None:
                module._parameters[key] = nn.Parameter(tensor, requires_grad=old.requires_grad)
            else:
                module._buffers[key] = tensor
        for key, number in numbers.items():
            setattr(module, key, number)
    set_record(model, record)
    for name in kept:  # also by itself, for parts of the model that are saved alone or put together anew
        set_record(model.get_submodule(name), {"": record[name]} if name in record else {})


@torch.no_grad()
def silence_(model: nn.Module, kept: Mapping[str, Kept]) -> None:
    """Set the weights that read the channels which are to go to zero, in place: the model as if they were gone."""
    for name, what in kept.items():
        module: Any = model.get_submodule(name)
        if what.into is None or "in" not in (widths := widths_of(module)):
            continue
        groups = int(getattr(module, "groups", 1))
        transposed = isinstance(module, _TRANSPOSED)
        index = what.into if transposed else _of_groups(what.into, widths["in"], groups)
        silent = torch.ones(module.weight.shape[0 if transposed else 1], dtype=torch.bool, device=module.weight.device)
        silent[index.to(silent.device)] = False
        shape = [1] * module.weight.dim()
        shape[0 if transposed else 1] = -1
        module.weight.masked_fill_(silent.view(shape), 0)


def narrow_to_(model: nn.Module, widths: Mapping[str, Mapping[str, Sequence[int]]]) -> None:
    """Make layers as narrow as a record says; which weights stay is left open, for they are about to be loaded.

    Raises:
        ValueError: a layer that the model lacks, or one of another width than the record's before.
    """
    kept = {}
    for name, sides in widths.items():
        try:
            module = model.get_submodule(name)
        except AttributeError:
            raise ValueError(f"the model has no layer {name!r}, from which channels were removed") from None
        here = widths_of(module)
        for side, (_, before) in sides.items():
            if here.get(side) != before:
                has = f"{here[side]} {side}put channels" if side in here else f"no {side}put channels"
                raise ValueError(f"layer {name!r} has {has} in the model, {before} before removal in the file")
        groups = 1 if is_depthwise(module) else int(getattr(module, "groups", 1))
        kept[name] = Kept(
            *(_evenly(sides[side], groups) if side in sides else None for side in ("out", "in")),
        )
    narrow_(model, kept)


def _evenly(width: Sequence[int], groups: int) -> Tensor:
    """The first channels of each group."""
    now, before = width
    if now % groups:
        raise ValueError(f"{now} channels are not the same number in each of {groups} groups")
    cpu = torch.device("cpu")  # also where a model is built under the meta device
    first = torch.arange(now // groups, device=cpu)
    return (torch.arange(groups, device=cpu)[:, None] * (before // groups) + first).flatten()


def in_words(sides: Mapping[str, Sequence[int]]) -> str:
    """The widths of one layer: "32 of 64 out, 16 of 32 in"."""
    return ", ".join(f"{now} of {before} {side}" for side, (now, before) in sides.items())


def check_widths(widths: Any) -> None:
    """Raise ValueError where a record, read from a file, is none."""
    if not isinstance(widths, dict):
        raise ValueError(f"channels is {type(widths).__name__}, accepted is an object")
    for name, sides in widths.items():
        named = isinstance(sides, dict) and set(sides) <= {"out", "in"}
        if not named or not all(_is_width(width) for width in sides.values()):
            raise ValueError(
                f"channels of layer {name!r} are {sides!r}, accepted are 'out' and 'in' with [now, before]"
            )


def _is_width(width: Any) -> bool:
    pair = isinstance(width, list) and len(width) == 2 and all(type(n) is int for n in width)
    return pair and 1 <= width[0] <= width[1]


def record_of(model: nn.Module) -> Widths:
    """What was taken out of a model or of parts of it, by layer; empty where nothing was. A copy."""
    found: Widths = {}
    for prefix, module in model.named_modules():
        held = module.meta if isinstance(module, fx.GraphModule) else vars(module)
        for name, sides in held.get(_RECORD, {}).items():
            whole = ".".join(part for part in (prefix, name) if part)
            if _still_so(model, whole, sides):
                found.setdefault(whole, {side: list(width) for side, width in sides.items()})
    return found


def _still_so(model: nn.Module, name: str, sides: Mapping[str, Sequence[int]]) -> bool:
    """Whether a layer has the widths of a record; another one may have taken its place."""
    try:
        here = widths_of(model.get_submodule(name))
    except AttributeError:
        return True  # a form of the model, whose layers have other names
    return all(here.get(side, now) == now for side, (now, _) in sides.items())


def set_record(model: nn.Module, record: Widths) -> None:
    """Note on a model what was taken out of it; a copy or a form of the model must be told."""
    if isinstance(model, fx.GraphModule):
        model.meta[_RECORD] = record
    elif record:
        setattr(model, _RECORD, record)
