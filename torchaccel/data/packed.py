"""One file that holds a whole image set: small JPEGs, or pixels as they are, which need no decoding.

Layout: 16 bytes of header (magic, version, kind), the records, an index (a NumPy .npz, which carries checksums of its
own), and 24 bytes of footer (where the index begins, its size, magic). The index has for each record its offset, size,
CRC-32, height, width and label, and the names that the images had.
"""

from __future__ import annotations

import io
import json
import mmap
import os
import struct
import zipfile
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from torchaccel.data.sources import digest

MAGIC = b"TACCPACK"
VERSION = 1
KINDS = ("jpeg", "raw")
HEADER = struct.Struct("<8sII")
FOOTER = struct.Struct("<QQ8s")
FIELDS = {"offset": "<i8", "size": "<i8", "crc": "<u4", "height": "<i4", "width": "<i4", "label": "<i8"}


class Packed:
    """A file that `torchaccel pack` made.

    Raw pixels are mapped into memory: do not shorten the file while it is in use.

    Args:
        path: the file.

    Attributes:
        kind: "jpeg" or "raw".
        classes: names of the labels.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is damaged, or was not made by `torchaccel pack`.

    Equivalent to ImageFolder on the folder that was packed.
    """

    channels = 3

    def __init__(self, path: str | Path) -> None:
        self.path = os.fspath(path)
        self._file = open(self.path, "rb")
        try:
            self.kind, index = read_index(self._file, self.path)
        except BaseException:
            self._file.close()
            raise
        self._index = {name: index[name] for name in FIELDS}
        self._names, self.classes = index["names"], json.loads(index["classes"].tobytes())
        sizes = set(zip(self._index["height"].tolist(), self._index["width"].tolist(), strict=True))
        self.shape: tuple[int, int] | None = sizes.pop() if len(sizes) == 1 else None
        self._pixels: np.ndarray | None = None
        if self.kind == "raw":
            mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            self._pixels = np.frombuffer(mapped, np.uint8)

    def __len__(self) -> int:
        return len(self._index["offset"])

    def items(self, indices: np.ndarray) -> list[Any]:
        offsets, sizes = self._index["offset"][indices].tolist(), self._index["size"][indices].tolist()
        if self._pixels is None:
            descriptor = self._file.fileno()
            return [(descriptor, offset, size) for offset, size in zip(offsets, sizes, strict=True)]
        heights, widths = self._index["height"][indices].tolist(), self._index["width"][indices].tolist()
        return [
            self._pixels[offset : offset + size].reshape(height, width, 3)
            for offset, size, height, width in zip(offsets, sizes, heights, widths, strict=True)
        ]

    def labels(self, indices: np.ndarray) -> np.ndarray:
        return self._index["label"][indices]

    def name(self, index: int) -> str:
        return f"{self.path}:{self._name_list[index]}"

    @cached_property
    def _name_list(self) -> list[str]:
        return self._names.tobytes().decode(errors="surrogateescape").split("\0")

    def fingerprint(self) -> str:
        return digest("Packed", *(self._index[name].tobytes() for name in FIELDS))

    def check(self) -> list[int]:
        """Read everything and compare checksums: the indices of records that are damaged."""
        descriptor = self._file.fileno()
        records = zip(*(self._index[name].tolist() for name in ("offset", "size", "crc")), strict=True)
        return [
            i for i, (offset, size, crc) in enumerate(records) if zlib.crc32(os.pread(descriptor, size, offset)) != crc
        ]

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return Packed, (self.path,)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


def read_index(file: Any, path: str) -> tuple[str, Any]:
    """The kind of an open packed file, and its index."""
    size = os.fstat(file.fileno()).st_size
    if size < HEADER.size + FOOTER.size:
        raise ValueError(f"Packed: {path!r} has {size} bytes, which is no packed file")
    magic, version, kind = HEADER.unpack(os.pread(file.fileno(), HEADER.size, 0))
    if magic != MAGIC or version != VERSION or kind >= len(KINDS):
        raise ValueError(f"Packed: {path!r} was not made by this version of `torchaccel pack`")
    start, count, magic = FOOTER.unpack(os.pread(file.fileno(), FOOTER.size, size - FOOTER.size))
    if magic != MAGIC or start + count + FOOTER.size != size:
        raise ValueError(f"Packed: {path!r} is damaged: it was cut or extended")
    try:
        with np.load(io.BytesIO(os.pread(file.fileno(), count, start)), allow_pickle=False) as archive:
            index = {name: archive[name] for name in (*FIELDS, "names", "classes")}
    except (ValueError, KeyError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"Packed: {path!r} is damaged: its index: {error}") from error
    records = len(index["offset"])
    ends = index["offset"] + index["size"]
    fits = all(index[name].shape == (records,) and index[name].dtype == kind_ for name, kind_ in FIELDS.items())
    if not fits or records == 0 or index["offset"].min() < HEADER.size or index["size"].min() < 0 or ends.max() > start:
        raise ValueError(f"Packed: {path!r} is damaged: its index points outside of the file")
    if KINDS[kind] == "raw" and (index["size"] != index["height"].astype(np.int64) * index["width"] * 3).any():
        raise ValueError(f"Packed: {path!r} is damaged: sizes in its index contradict each other")
    return KINDS[kind], index


def index_bytes(records: np.ndarray, names: list[str], classes: list[str]) -> bytes:
    """The index of a packed file: `records` is a structured array of FIELDS."""
    out = io.BytesIO()
    arrays: dict[str, Any] = {name: np.ascontiguousarray(records[name]) for name in FIELDS}
    arrays["names"] = np.frombuffer("\0".join(names).encode(errors="surrogateescape"), np.uint8)
    arrays["classes"] = np.frombuffer(json.dumps(classes).encode(), np.uint8)
    np.savez(out, **arrays)
    return out.getvalue()
