"""InputRange: how a layer's activations are quantized, found once by calibration."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from torchaccel.ops import _check


@dataclass(frozen=True)
class InputRange:
    """A static, per-tensor quantization of activations: `x = (q - zero_point) * scale`.

    Args:
        scale: the width of one step, finite and above 0, in the units of the activation.
        zero_point: the integer that stands for 0, within the range of `dtype`.
        dtype: torch.uint8 or torch.int8.

    Raises:
        ValueError: a scale that is not finite and above 0, another dtype, or a zero point outside of it.
    """

    scale: float
    zero_point: int = 0
    dtype: torch.dtype = torch.uint8

    def __post_init__(self) -> None:
        _check.dtype_in("InputRange", "dtype", self.dtype, _check.INT8)
        # In float32, the type that the ops read: a double may round to 0 or to infinity there.
        scale = torch.tensor(self.scale, dtype=torch.float32).item()
        if not 0 < scale < math.inf:
            _check.fail("InputRange", f"scale is {self.scale}, accepted is a finite number above 0 in float32")
        info = torch.iinfo(self.dtype)
        if not info.min <= self.zero_point <= info.max:
            _check.fail("InputRange", f"zero_point is {self.zero_point}, accepted are {info.min} to {info.max}")


def spanning(ranges: list[InputRange]) -> InputRange:
    """The narrowest range of all values of the given ones, which have one dtype; one of them, where that is as wide."""
    dtype = ranges[0].dtype
    info = torch.iinfo(dtype)
    low = min((info.min - given.zero_point) * given.scale for given in ranges)
    high = max((info.max - given.zero_point) * given.scale for given in ranges)
    for given in ranges:
        if (info.min - given.zero_point) * given.scale <= low and (info.max - given.zero_point) * given.scale >= high:
            return given
    scale = high / 255 - low / 255
    return InputRange(scale, min(max(info.min + round(-low / scale), info.min), info.max), dtype)
