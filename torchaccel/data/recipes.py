"""What is done to each image, as small frozen values; compiled into one plan that decoders carry out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from torchaccel import _native

Size = int | tuple[int, int]  # a square's side, or (height, width)

_DTYPES = {torch.uint8: "uint8", torch.float16: "float16", torch.float32: "float32"}
_MOST = 1 << 15  # pixels, of a side


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random part of the image, resized: `scale` is the range of its share of the area, `ratio` of width / height.

    Equivalent to torchvision.transforms.RandomResizedCrop(size, scale, ratio), bilinear, on a PIL image.
    Source: Szegedy et al., "Going deeper with convolutions", 2014.
    """

    size: Size
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Resize:
    """Resized with antialiasing: an int is the length of the short side, (height, width) the whole.

    Equivalent to torchvision.transforms.Resize(size), bilinear, on a PIL image.
    """

    size: Size


@dataclass(frozen=True)
class CenterCrop:
    """The middle of the image, with zeros around it where the image is smaller.

    Equivalent to torchvision.transforms.CenterCrop(size).
    """

    size: Size


@dataclass(frozen=True)
class RandomCrop:
    """A random window of the image within `padding` zeros on each side.

    Equivalent to torchvision.transforms.RandomCrop(size, padding).
    """

    size: Size
    padding: int = 0


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirrored with probability `p`. Equivalent to torchvision.transforms.RandomHorizontalFlip(p)."""

    p: float = 0.5


@dataclass(frozen=True)
class Normalize:
    """(pixel / 255 - mean) / std for each channel, as `dtype` float32 or float16; ImageNet's figures by default.

    Equivalent to torchvision.transforms.Normalize(mean, std) after ToTensor().
    """

    mean: Sequence[float] | float = (0.485, 0.456, 0.406)
    std: Sequence[float] | float = (0.229, 0.224, 0.225)
    dtype: torch.dtype = torch.float32

    def per_channel(self, channels: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and std, float32 [channels] each."""
        found = []
        for name, value in (("mean", self.mean), ("std", self.std)):
            values = np.broadcast_to(np.asarray(value, np.float32).reshape(-1), _fits(name, value, channels))
            found.append(values)
        if not (found[1] > 0).all() or not all(np.isfinite(v).all() for v in found):
            raise ValueError(f"Normalize: mean {self.mean}, std {self.std}; accepted are finite, std above 0")
        return found[0], found[1]


Step = RandomResizedCrop | Resize | CenterCrop | RandomCrop | HorizontalFlip | Normalize


def _fits(name: str, value: Sequence[float] | float, channels: int) -> tuple[int]:
    count = np.asarray(value).size
    if count not in (1, channels):
        raise ValueError(f"Normalize: {name} has {count} values, accepted are 1 and {channels}, one a channel")
    return (channels,)


@dataclass(frozen=True, eq=False)
class Plan:
    """A recipe for one source: the fields of csrc/data/recipe.h."""

    size: tuple[int, int]
    channels: int
    resize: str = "none"
    resize_to: tuple[int, int] = (1, 1)
    area: tuple[float, float] = (1.0, 1.0)
    log_ratio: tuple[float, float] = (0.0, 0.0)
    crop: str = "none"
    padding: int = 0
    flip: float = 0.0
    dtype: str = "uint8"
    channels_last: bool = False
    table: np.ndarray | None = None  # float32 [channels, 256], what each pixel value becomes

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one sample as it lies in memory: (H, W, C) or (C, H, W)."""
        return (*self.size, self.channels) if self.channels_last else (self.channels, *self.size)

    @cached_property
    def native(self) -> Any:
        """The same for csrc/data."""
        module, reason = _native.data()
        if module is None:
            raise RuntimeError(f"csrc/data is not there: {reason}")
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return module.Recipe(**fields)


def compile_recipe(
    steps: Sequence[Step], channels: int, shape: tuple[int, int] | None, channels_last: bool = False
) -> Plan:
    """Turn steps into a plan.

    Args:
        steps: at most one Resize or RandomResizedCrop, one CenterCrop or RandomCrop, one HorizontalFlip, and last one
            Normalize; together they must fix the size of the output.
        channels: of the source's images, 1 or 3.
        shape: (height, width) that all images of the source have, or None.
        channels_last: whether channels are innermost in memory.

    Raises:
        ValueError: steps that do not fit each other or the source.
    """
    fields: dict[str, Any] = {"channels": channels, "channels_last": channels_last}
    size = shape
    seen: set[str] = set()
    for step in steps:
        kind = _kind(step)
        if kind in seen or "normalize" in seen or (kind == "resize" and "crop" in seen):
            raise ValueError(
                f"recipe is {', '.join(type(s).__name__ for s in steps)}; accepted are, in this order and at most once "
                "each: Resize or RandomResizedCrop, CenterCrop or RandomCrop, HorizontalFlip, Normalize"
            )
        seen.add(kind)
        if isinstance(step, RandomResizedCrop):
            size = _size(step.size, "RandomResizedCrop")
            low, high = _range("RandomResizedCrop: scale", step.scale)
            if high > 1:
                raise ValueError(f"RandomResizedCrop: scale is {step.scale}, accepted is a range within 0..1")
            ratio = _range("RandomResizedCrop: ratio", step.ratio)
            fields |= {
                "resize": "random crop",
                "area": (low, high),
                "log_ratio": (math.log(ratio[0]), math.log(ratio[1])),
            }
        elif isinstance(step, Resize):
            to = _size(step.size, "Resize")
            if isinstance(step.size, int):
                fields |= {"resize": "short side", "resize_to": to}
                size = None
            else:
                fields |= {"resize": "exact", "resize_to": to}
                size = to
        elif isinstance(step, CenterCrop):
            size = _size(step.size, "CenterCrop")
            fields |= {"crop": "center"}
        elif isinstance(step, RandomCrop):
            size = _size(step.size, "RandomCrop")
            if not 0 <= step.padding < min(size):
                raise ValueError(f"RandomCrop: padding is {step.padding}, accepted is 0..{min(size) - 1}")
            fields |= {"crop": "random", "padding": step.padding}
        elif isinstance(step, HorizontalFlip):
            if not 0 <= step.p <= 1:
                raise ValueError(f"HorizontalFlip: p is {step.p}, accepted is 0..1")
            fields |= {"flip": float(step.p)}
        else:
            fields |= {"dtype": _DTYPES.get(step.dtype, ""), "table": _table(step, channels)}
    if size is None:
        raise ValueError(
            "recipe does not fix the size of the output; add CenterCrop(size), RandomCrop(size), "
            "RandomResizedCrop(size) or Resize((height, width))"
        )
    return Plan(size=size, **fields)


def _kind(step: Step) -> str:
    if isinstance(step, RandomResizedCrop | Resize):
        return "resize"
    if isinstance(step, CenterCrop | RandomCrop):
        return "crop"
    if isinstance(step, HorizontalFlip):
        return "flip"
    if isinstance(step, Normalize):
        return "normalize"
    raise ValueError(f"recipe holds {step!r}; accepted are the classes of torchaccel.data.recipes")


def _size(size: Size, name: str) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and 1 <= side <= _MOST for side in pair):
        raise ValueError(f"{name}: size is {size!r}, accepted is an int or (height, width), each in 1..{_MOST}")
    return pair[0], pair[1]


def _range(name: str, pair: tuple[float, float]) -> tuple[float, float]:
    if len(pair) != 2 or not 0 < pair[0] <= pair[1] < math.inf:
        raise ValueError(f"{name} is {pair}, accepted is (low, high), both above 0")
    return float(pair[0]), float(pair[1])


def _table(step: Normalize, channels: int) -> np.ndarray:
    if step.dtype not in (torch.float16, torch.float32):
        raise ValueError(f"Normalize: dtype is {step.dtype}, accepted are torch.float32 and torch.float16")
    mean, std = step.per_channel(channels)
    pixels = np.arange(256, dtype=np.float32) / np.float32(255)
    return np.ascontiguousarray((pixels - mean[:, None]) / std[:, None])
