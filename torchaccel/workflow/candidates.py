"""What each layer could run as, and where nothing else could, why."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from torchaccel.compress import (
    Int8Dynamic,
    Int8Static,
    Int8WeightOnly,
    int8_module,
    pattern_of,
    residual_of,
    stored_pattern,
)
from torchaccel.graph.fuse import Layer, layer_at
from torchaccel.graph.prepare import Prepared
from torchaccel.nn import (
    InputRange,
    Int8AdaptiveAvgPool2d,
    Int8Add,
    Int8AvgPool2d,
    Int8Conv2d,
    Int8Linear,
    Int8MaxPool2d,
    SparseConv2d,
    SparseInt8Conv2d,
)
from torchaccel.nn._packed import PackedModule
from torchaccel.nn.add import Add
from torchaccel.nn.dense import DenseConv2d, DenseConvTranspose2d
from torchaccel.ops import blocks

Int8 = Int8Static | Int8Dynamic | Int8WeightOnly
Build = Callable[[], nn.Module]  # raises ValueError with the reason where it cannot


@dataclass(frozen=True)
class Candidates:
    """What each layer could run as.

    Attributes:
        alternatives: layer name -> modules that could serve there.
        kept: layer name -> why none could.
        unserved: of the layers kept, those that only lack a kernel -> the module that a reference would serve.
    """

    alternatives: Mapping[str, Sequence[nn.Module]]
    kept: Mapping[str, str]
    unserved: Mapping[str, nn.Module]


def served(module: nn.Module, device: torch.device) -> str | None:
    """Why no native kernel would serve the layer on `device`, or None. A reference is never faster than dense."""
    assert isinstance(module, PackedModule)
    return module.unsupported(device)


def _sparse_float(dense: Layer, pattern: str) -> nn.Module:
    if not isinstance(dense, DenseConv2d):
        raise ValueError("sparse kernels serve convolutions")
    module = SparseConv2d.from_float(dense.to_float(), pattern)
    module.fuse_activation(dense.activation)
    return _gaining(module)


def _gaining(module: nn.Module) -> nn.Module:
    """The layer, unless its device would compute what was pruned all the same."""
    if isinstance(module, SparseConv2d | SparseInt8Conv2d) and (reason := module.no_gain()) is not None:
        raise ValueError(reason)
    return module


def _packed_dense(build: Build) -> nn.Module:
    """The layer whose 2:4 weight is packed dense: half the products do not pay everywhere."""
    module = build()
    assert isinstance(module, Int8Conv2d | Int8Linear)
    if not module.is_two_four():
        raise ValueError("its weight is packed dense as it is")
    module.two_four = False
    module.pack()
    return module


def _int8(
    dense: Layer, int8: Int8, input_range: InputRange | None, residual_range: InputRange | None, pattern: str | None
) -> nn.Module:
    module: Any = int8_module(dense.to_float(), int8, input_range, pattern=pattern)
    module.fuse_activation(dense.activation)
    if residual_range is not None:
        module.residual_range = residual_range
    return _gaining(module)


def _int8_weightless(layer: nn.Module, input_range: InputRange | None, other: InputRange | None) -> nn.Module:
    if isinstance(layer, nn.MaxPool2d):
        return Int8MaxPool2d.from_float(layer)
    if input_range is None:
        raise ValueError("the range of its input was not calibrated")
    if isinstance(layer, Add):
        assert other is not None
        return Int8Add.from_ranges(input_range, other, layer.activation)
    if isinstance(layer, nn.AvgPool2d):
        return Int8AvgPool2d.from_float(layer, input_range)
    assert isinstance(layer, nn.AdaptiveAvgPool2d)
    return Int8AdaptiveAvgPool2d.from_float(layer, input_range)


def _builds(
    prepared: Prepared, name: str, device: torch.device, int8: Int8 | None, ranges: Mapping[str, InputRange]
) -> Iterator[Build | str]:
    """The forms of one layer, the sparsest first, or why there is none."""
    if name in prepared.given:
        yield lambda: prepared.given[name]
        return
    input_range, other = ranges.get(name), ranges.get(residual_of(name))
    if name in prepared.weightless:
        yield partial(_int8_weightless, prepared.dense.get_submodule(name), input_range, other)
        return
    dense = layer_at(prepared.dense, name)
    pattern = pattern_of(dense.weight)
    if int8 is not None:
        build = partial(_int8, dense, int8, input_range, other)
        for form in dict.fromkeys((stored_pattern(dense, pattern, device), None)):
            yield partial(build, form)
        halved = pattern in blocks.TWO_FOUR and not isinstance(dense, DenseConvTranspose2d)
        if device.type == "cuda" and halved and not isinstance(int8, Int8WeightOnly):
            yield partial(_packed_dense, partial(build, None))
    elif pattern is not None:
        yield partial(_sparse_float, dense, pattern)
    else:
        yield "not pruned, not quantized"


def candidates(
    prepared: Prepared,
    device: torch.device,
    int8: Int8 | None = None,
    ranges: Mapping[str, InputRange] | None = None,
    left_out: Collection[str] = (),
) -> Candidates:
    """Find each layer's other forms that a native kernel serves.

    Args:
        prepared: layers that came int8 or sparse are their own candidates; others are made from their float weights.
        device: where they will run.
        int8: how float layers are quantized, or None.
        ranges: layer name -> the range of its input, for `Int8Static`.
        left_out: layers that stay as they are.
    """
    alternatives: dict[str, list[nn.Module]] = {}
    kept: dict[str, str] = {}
    unserved: dict[str, nn.Module] = {}
    # Without weights, a layer is exchanged only to hand int8 on, which layers with static ranges take.
    static = bool(ranges) or any(getattr(module, "input", None) == "static" for module in prepared.given.values())
    between = prepared.weightless if static else []
    for name in (*prepared.names, *between):
        if name in left_out:
            kept[name] = "kept dense: filter_fn left it out"
            continue
        for build in _builds(prepared, name, device, int8, ranges or {}):
            try:
                module = build if isinstance(build, str) else build()
            except ValueError as error:
                module = str(error)
            reason = module if isinstance(module, str) else served(module, device)
            if isinstance(module, nn.Module) and reason is None:
                alternatives.setdefault(name, []).append(module)
                continue
            kept[name] = f"kept dense: {reason}"
            if isinstance(module, nn.Module):
                unserved.setdefault(name, module)
    return Candidates(
        alternatives,
        {name: reason for name, reason in kept.items() if name not in alternatives},
        {name: module for name, module in unserved.items() if name not in alternatives},
    )
