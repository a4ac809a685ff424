"""Upsample: nearest neighbours by a whole factor, of floats and of int8, whose scale stays as it is."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchaccel.ops import _check


class Upsample(nn.Module):
    """Each pixel becomes a square of `factor` x `factor`.

    Args:
        factor: at least 1.

    Shape: x [N, C, H, W], float, int8 or uint8; returns [N, C, factor * H, factor * W].

    Equivalent to `nn.Upsample(scale_factor=factor, mode="nearest")`.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        if not isinstance(factor, int) or factor < 1:
            _check.fail(type(self).__name__, f"factor is {factor!r}, accepted are integers of at least 1")
        self.factor = factor

    @classmethod
    def like(cls, size: Any, scale_factor: Any, mode: str) -> Upsample | None:
        """The same as `nn.Upsample` of images with these arguments, or None where that is another one."""
        factors = tuple(scale_factor) if isinstance(scale_factor, tuple | list) else (scale_factor, scale_factor)
        if mode != "nearest" or size is not None or len(factors) != 2 or factors[0] != factors[1]:
            return None
        factor = factors[0]
        whole = isinstance(factor, int | float) and math.isfinite(factor) and factor == int(factor) >= 1
        return cls(int(factor)) if whole else None

    def forward(self, input: Tensor) -> Tensor:
        if input.dtype == torch.int8:  # which torch has no kernel for
            return self.forward(input.view(torch.uint8)).view(torch.int8)
        return F.interpolate(input, scale_factor=self.factor)

    def extra_repr(self) -> str:
        return f"factor={self.factor}"
