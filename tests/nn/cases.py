"""Layers of every kind with an input each, shared by the tests of this folder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchaccel.nn import (
    InputRange,
    Int8Conv2d,
    Int8ConvTranspose2d,
    Int8Linear,
    Int8LinearWeightOnly,
    SparseConv2d,
    SparseInt8Conv2d,
)


@dataclass
class Case:
    layer: nn.Module
    reference: nn.Module
    x: Tensor


def affine(x: Tensor) -> InputRange:
    """uint8 over the range of `x`."""
    low, high = min(x.min().item(), 0.0), x.max().item()
    scale = (high - low) / 255
    return InputRange(scale, round(-low / scale), torch.uint8)


def symmetric(x: Tensor) -> InputRange:
    return InputRange(x.abs().max().item() / 127, 0, torch.int8)


def pruned(conv: nn.Conv2d, rows: int, columns: int, share: float = 0.6) -> nn.Conv2d:
    """Random blocks of (rows, columns) set to zero."""
    o, c, kh, kw = conv.weight.shape
    keep = torch.rand(o // rows, c // columns, kh, kw) > share
    with torch.no_grad():
        conv.weight *= keep.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    return conv


def make(kind: str) -> Case:
    """A quantized or sparse layer, the float layer that it stands for, and an input."""
    torch.manual_seed(sum(map(ord, kind)))
    image = torch.randn(2, 16, 7, 9)
    if kind.startswith("linear"):
        linear, x = nn.Linear(40, 24), torch.randn(3, 5, 40)
        made: nn.Module = {
            "linear static u8": lambda: Int8Linear.from_float(linear, affine(x)),
            "linear static s8": lambda: Int8Linear.from_float(linear, symmetric(x)),
            "linear dynamic": lambda: Int8Linear.from_float(linear),
            "linear weight-only": lambda: Int8LinearWeightOnly.from_float(linear),
        }[kind]()
        return Case(made, linear, x)
    if kind.startswith("transposed"):
        transposed = nn.ConvTranspose2d(16, 32, 3, 3)
        given = affine(image) if "static" in kind else None
        return Case(Int8ConvTranspose2d.from_float(transposed, given), transposed, image)
    groups = 4 if "grouped" in kind else 1
    conv = nn.Conv2d(16, 32, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=groups)
    if "sparse" in kind:
        pruned(conv, *((4, 4) if "4x4" in kind else (1, 4)))
    made = {
        "conv static u8": lambda: Int8Conv2d.from_float(conv, affine(image)),
        "conv static s8": lambda: Int8Conv2d.from_float(conv, symmetric(image)),
        "conv dynamic": lambda: Int8Conv2d.from_float(conv),
        "conv grouped": lambda: Int8Conv2d.from_float(conv, affine(image)),
        "sparse int8 1x4": lambda: SparseInt8Conv2d.from_float(conv, "1x4", affine(image)),
        "sparse int8 4x4": lambda: SparseInt8Conv2d.from_float(conv, "4x4", affine(image)),
        "sparse int8 dynamic": lambda: SparseInt8Conv2d.from_float(conv, "1x4"),
        "sparse float": lambda: SparseConv2d.from_float(conv, "1x4"),
    }[kind]()
    return Case(made, conv, image)


LINEAR = ("linear static u8", "linear static s8", "linear dynamic", "linear weight-only")
CONV = (
    "conv static u8", "conv static s8", "conv dynamic", "conv grouped",
    "sparse int8 1x4", "sparse int8 4x4", "sparse int8 dynamic", "sparse float",
    "transposed static u8", "transposed dynamic",
)  # fmt: skip
ALL = LINEAR + CONV


def error(y: Tensor, expected: Tensor) -> float:
    """Relative error in the Euclidean norm."""
    return ((y - expected).norm() / expected.norm()).item()
