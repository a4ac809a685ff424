"""Images for the tests: smooth pictures with texture, encoded in every way that the decoders tell apart."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """uint8 [height, width, 3]: waves of several lengths and some noise, as a photograph has them."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    channels = []
    for _ in range(3):
        waves = sum(
            a * np.sin(x / w + y / h + p)
            for a, w, h, p in zip(
                (60, 40, 20), random.uniform(3, 60, 3), random.uniform(3, 60, 3), random.uniform(0, 6, 3), strict=True
            )
        )
        channels.append(128 + waves + random.normal(0, 4, (height, width)))
    return np.stack(channels, -1).clip(0, 255).astype(np.uint8)


def jpeg(pixels: np.ndarray, mode: str = "RGB", **options: object) -> bytes:
    """The pixels as JPEG."""
    return _save(Image.fromarray(pixels).convert(mode), "JPEG", **{"quality": 88} | options)


def png(pixels: np.ndarray, mode: str = "RGB") -> bytes:
    """The pixels as PNG of a Pillow mode."""
    if mode == "I;16":
        wide = pixels[..., 0].astype(np.int64) * 250 + pixels[..., 1]
        return _save(Image.fromarray(wide.astype(np.uint16)), "PNG")
    return _save(Image.fromarray(pixels).convert(mode), "PNG")


def interlaced_png(pixels: np.ndarray) -> bytes:
    """The pixels as an Adam7-interlaced PNG, which Pillow does not write."""
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = b"".join(
        b"\0" + row.tobytes() for x, y, dx, dy in passes for row in pixels[y::dy, x::dx] if pixels[y::dy, x::dx].size
    )
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, 1)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def decoded(data: bytes) -> np.ndarray:
    """uint8 [H, W, 3], by Pillow."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def write_folder(root: Path, count: int, classes: tuple[str, ...] = ("a", "b")) -> Path:
    """A folder of JPEGs and some PNGs of several sizes, `count` in each class."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = picture(90 + 7 * (i % 5), 110 - 9 * (i % 4), seed=label * 1000 + i)
            data = png(pixels) if i % 6 == 5 else jpeg(pixels, progressive=i % 4 == 3)
            (root / name / f"{i:03}.{'png' if i % 6 == 5 else 'jpg'}").write_bytes(data)
    return root


def _save(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()
