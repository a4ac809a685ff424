"""int8_module: one float layer as its int8 counterpart, or the reason why there is none."""

from __future__ import annotations

import torch
from torch import nn

from torchaccel.compress.configs import Int8Config, Int8Static, Int8WeightOnly, check_config
from torchaccel.nn import (
    InputRange,
    Int8Conv2d,
    Int8ConvTranspose2d,
    Int8Linear,
    Int8LinearWeightOnly,
    SparseInt8Conv2d,
    _transposed,
)
from torchaccel.ops import blocks

_CPU_BLOCKS = ("1x4", "4x4")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def why_not(module: nn.Module) -> str | None:
    """Why a layer is no plain linear or convolution that int8 can stand in for, or None."""
    kind = next((k for k in (nn.Linear, nn.Conv2d, nn.ConvTranspose2d) if isinstance(module, k)), None)
    if kind is None:
        return f"{type(module).__name__} has no int8 counterpart"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return "its shape is not known yet: run the model once"
    if type(module).forward is not kind.forward:
        return f"{type(module).__name__} has a forward of its own"
    if isinstance(module, nn.ConvTranspose2d) and (reason := _transposed.why_not(module)) is not None:
        return reason
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has forward hooks, which a swap would drop"
    if module.weight.dtype not in _FLOATS:
        return f"its weight is {module.weight.dtype}, accepted are float32, float16 and bfloat16"
    return None


def stored_pattern(module: nn.Module, pattern: str | None, device: torch.device) -> str | None:
    """In which blocks a sparse int8 kernel wants the weight of a layer pruned in `pattern`, or None: a dense one.

    CPU kernels take 1x4 and 4x4, and tiles consist of the latter. CUDA kernels skip tiles, whatever the blocks. A
    weight that is 2:4 alone, or unstructured, is kept dense; CUDA kernels pack the former as 2:4 from there.
    """
    serves = isinstance(module, nn.Conv2d) and module.groups == 1
    if not serves or pattern is None or blocks.block_of(pattern) == (1, 1):
        return None
    if device.type == "cuda":
        return pattern
    pattern = "4x4" if pattern.startswith("tile") else pattern
    return pattern if pattern in _CPU_BLOCKS else None


def int8_module(
    module: nn.Module, config: Int8Config, input_range: InputRange | None = None, pattern: str | None = None
) -> nn.Module:
    """The int8 counterpart of a linear or convolution layer.

    Args:
        module: `nn.Linear`, `nn.Conv2d`, or `nn.ConvTranspose2d` with a stride as large as its kernel; unchanged. The
            int8 weights are a copy.
        config: which kind of int8.
        input_range: of the layer's input, needed for `Int8Static`, unused otherwise.
        pattern: keeps only the blocks of a pruned convolution that are not zero, see `stored_pattern`; None is dense.

    Raises:
        ValueError: with the reason where there is no counterpart.
    """
    check_config("int8_module", config)
    if (reason := why_not(module)) is not None:
        raise ValueError(reason)
    if isinstance(config, Int8WeightOnly):
        if not isinstance(module, nn.Linear):
            raise ValueError("weight-only int8 serves linear layers")
        if pattern is not None:
            raise ValueError(f"pattern is {pattern!r}, but sparse kernels serve nn.Conv2d")
        return Int8LinearWeightOnly.from_float(module)
    if isinstance(config, Int8Static):
        if input_range is None:
            raise ValueError("no calibration batch reached it")
    else:
        input_range = None
    if pattern is not None and not isinstance(module, nn.Conv2d):
        raise ValueError(f"pattern is {pattern!r}, but sparse kernels serve nn.Conv2d")
    if isinstance(module, nn.Linear):
        return Int8Linear.from_float(module, input_range)
    if isinstance(module, nn.ConvTranspose2d):
        return Int8ConvTranspose2d.from_float(module, input_range)
    assert isinstance(module, nn.Conv2d)
    if pattern is not None:
        return SparseInt8Conv2d.from_float(module, pattern, input_range)
    return Int8Conv2d.from_float(module, input_range)
