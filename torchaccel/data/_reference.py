"""What csrc/data does, in Python on Pillow: the fallback where it is not built, and what it is tested against.

Pillow resizes to the same bits; JPEG pixels differ where its libjpeg does, by at most 2 of 255. It holds a whole image,
and reads damaged JPEG data without a word where simplejpeg does not help.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from torchaccel.data._random import below, philox, uniform
from torchaccel.data.recipes import Plan

_ATTEMPTS, _CROP_BLOCK, _FLIP_BLOCK = 10, 10, 11
_MOST_PIXELS = 1 << 27


class View(NamedTuple):
    """The box (x, y, width, height) is resized to `full`; the window at (left, top) of it is kept."""

    box: tuple[int, int, int, int]
    full: tuple[int, int]  # (width, height)
    left: int
    top: int
    flip: bool


def choose_view(plan: Plan, width: int, height: int, seed: int, epoch: int, index: int) -> View:
    """What recipe.cpp chooses, from the same numbers."""

    def draw(block: int) -> tuple[int, int, int, int]:
        return philox(seed, epoch, index, block)

    box, full = (0, 0, width, height), (width, height)
    if plan.resize == "exact":
        full = (plan.resize_to[1], plan.resize_to[0])
    elif plan.resize == "short side":
        longer = plan.resize_to[0] * max(width, height) // min(width, height)
        if longer > 1 << 20:
            raise ValueError(f"an image of {width}x{height} is too long to be resized by its short side")
        full = (plan.resize_to[0], longer) if width <= height else (longer, plan.resize_to[0])
    elif plan.resize == "random crop":
        box, full = _random_box(plan, width, height, draw), (plan.size[1], plan.size[0])
    out_height, out_width = plan.size
    left = top = 0
    if plan.crop == "center":
        left, top = _at_center(full[0], out_width), _at_center(full[1], out_height)
    elif plan.crop == "random":
        across, down = full[0] + 2 * plan.padding - out_width, full[1] + 2 * plan.padding - out_height
        if across < 0 or down < 0:
            raise ValueError(f"an image of {full[0]}x{full[1]} is smaller than the crop of {out_width}x{out_height}")
        drawn = draw(_CROP_BLOCK)
        top, left = below(drawn[0], down + 1) - plan.padding, below(drawn[1], across + 1) - plan.padding
    elif full != (out_width, out_height):
        raise ValueError(f"an image of {full[0]}x{full[1]}, accepted is {out_width}x{out_height}")
    flip = plan.flip > 0 and uniform(draw(_FLIP_BLOCK)[0]) < plan.flip
    return View(box, full, left, top, flip)


def _random_box(plan: Plan, width: int, height: int, draw: Callable) -> tuple[int, int, int, int]:
    (low, high), (thin, wide) = plan.area, plan.log_ratio
    for attempt in range(_ATTEMPTS):
        drawn = draw(attempt)
        target = width * height * (low + (high - low) * uniform(drawn[0]))
        ratio = math.exp(thin + (wide - thin) * uniform(drawn[1]))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 1 <= w <= width and 1 <= h <= height:
            return below(drawn[3], width - w + 1), below(drawn[2], height - h + 1), w, h
    ratio, w, h = width / height, width, height
    if ratio < math.exp(thin):
        h = round(width / math.exp(thin))
    elif ratio > math.exp(wide):
        w = round(height * math.exp(wide))
    w, h = min(max(w, 1), width), min(max(h, 1), height)
    return (width - w) // 2, (height - h) // 2, w, h


def _at_center(whole: int, part: int) -> int:
    return round((whole - part) / 2) if whole >= part else -((part - whole) // 2)


def fill(
    decode_jpeg: Callable[[bytes], np.ndarray] | None,
    plan: Plan,
    item: Any,
    index: int,
    seed: int,
    epoch: int,
    out: np.ndarray,
    position: int,
) -> None:
    """Fill out[position] from an item as csrc/data takes it: a path, a range of a file, bytes or pixels."""
    from PIL import Image

    image = _pixels(item, decode_jpeg)
    height, width = image.shape[:2]
    view = choose_view(plan, width, height, seed, epoch, index)
    x, y, w, h = view.box
    part = Image.fromarray(np.ascontiguousarray(image[y : y + h, x : x + w]))
    # Two steps, since Pillow's versions differ in which direction comes first, and thereby in how they round.
    part = part.resize((view.full[0], h), Image.Resampling.BILINEAR).resize(view.full, Image.Resampling.BILINEAR)
    resized = np.asarray(part).reshape(view.full[1], view.full[0], plan.channels)
    sample = np.zeros((*plan.size, plan.channels), np.uint8)
    rows = slice(max(view.top, 0), min(view.top + plan.size[0], view.full[1]))
    columns = slice(max(view.left, 0), min(view.left + plan.size[1], view.full[0]))
    sample[rows.start - view.top : rows.stop - view.top, columns.start - view.left : columns.stop - view.left] = (
        resized[rows, columns]
    )
    if view.flip:
        sample = sample[:, ::-1]
    if plan.table is not None:
        sample = plan.table[np.arange(plan.channels), sample].astype(plan.dtype)
    out[position] = sample if plan.channels_last else sample.transpose(2, 0, 1)


def decode_simplejpeg(data: bytes) -> np.ndarray:
    """uint8 [H, W, 3]; raises ValueError for damage of any kind."""
    import simplejpeg

    return simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False, strict=True)


def _pixels(item: Any, decode_jpeg: Callable[[bytes], np.ndarray] | None) -> np.ndarray:
    """uint8 [H, W, C] of an item."""
    from PIL import Image

    if isinstance(item, np.ndarray):
        return item.squeeze(2) if item.ndim == 3 and item.shape[2] == 1 else item
    data = read_bytes(item)
    jpeg, png = data[:3] == b"\xff\xd8\xff", data[:4] == b"\x89PNG"
    if not (jpeg or png):
        raise ValueError("neither JPEG nor PNG" if data else "the file is empty")
    if jpeg and b"\xff\xd9" not in data[2:]:
        raise ValueError("damaged JPEG: its end is missing")
    try:
        image = Image.open(io.BytesIO(data), formats=["JPEG" if jpeg else "PNG"])
        if image.width * image.height > _MOST_PIXELS:
            raise ValueError(f"the header claims {image.width}x{image.height} pixels, accepted are at most 2^27")
        if jpeg and decode_jpeg is not None and image.mode in ("RGB", "L"):
            return decode_jpeg(data)
        if image.mode.startswith("I"):  # 16 bits of gray, which Pillow would clip
            wide = np.asarray(image).astype(np.int64)
            return np.repeat(((wide * 255 + 32895) >> 16).astype(np.uint8)[:, :, None], 3, axis=2)
        return np.asarray(image.convert("RGB"))
    except ValueError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, EOFError, struct.error and others
        raise ValueError(f"damaged {'JPEG' if jpeg else 'PNG'}: {error}") from error


def read_bytes(item: Any) -> bytes:
    """The bytes of an item that is a path, (descriptor, offset, count) or bytes."""
    try:
        if isinstance(item, str):
            descriptor = os.open(item, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as file:
                return file.read()
        if isinstance(item, tuple):
            descriptor, offset, count = item
            data = os.pread(descriptor, count, offset)
            if len(data) != count:
                raise ValueError(f"the file ended after {len(data)} of {count} bytes")
            return data
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    return bytes(item)
