"""Images in tar archives as webdataset lays them out: members of one sample share their name up to the first dot."""

from __future__ import annotations

import glob
import os
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torchaccel.data.sources import READABLE, digest

_LABEL = ".cls"


class Tar:
    """Uncompressed tar archives: `a.jpg` with its label, an integer as text, in `a.cls`.

    Each archive's headers are read once, here; images are then read where they lie, in any order.

    Args:
        path: an archive; a pattern such as "train-*.tar" or "train-{000..099}.tar"; or a list of those.

    Raises:
        FileNotFoundError: an archive that does not exist, or a pattern that fits none.
        ValueError: an archive that is cut, compressed or no archive; a label that is no integer; no image at all.

    Equivalent to webdataset.WebDataset(path).decode("pil").to_tuple("jpg;png", "cls"), with random access.
    """

    channels = 3
    shape: tuple[int, int] | None = None

    def __init__(self, path: str | Path | Sequence[str | Path]) -> None:
        given = [path] if isinstance(path, str | Path) else list(path)
        self.archives = [found for pattern in given for found in _expand(os.fspath(pattern))]
        self._files = [open(archive, "rb") for archive in self.archives]
        self._names: list[str] = []
        places: list[tuple[int, int, int, int]] = []  # archive, offset, size, label
        for number in range(len(self.archives)):
            for key, (offset, size, label) in self._scan(number).items():
                self._names.append(key)
                places.append((number, offset, size, label))
        if not places:
            raise ValueError(f"Tar: {', '.join(self.archives)} hold no {', '.join(READABLE)}")
        self._places = np.array(places, np.int64)

    def _scan(self, number: int) -> dict[str, tuple[int, int, int]]:
        archive, file = self.archives[number], self._files[number]
        images: dict[str, tuple[int, int]] = {}
        labels: dict[str, int] = {}
        size = os.fstat(file.fileno()).st_size
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    folder, name = os.path.split(member.name)
                    stem, dot, ending = name.partition(".")
                    key, ending = os.path.join(folder, stem), dot + ending.lower()
                    if not member.isfile():
                        continue
                    if member.offset_data + member.size > size:
                        raise ValueError(f"Tar: {archive!r} is cut within {member.name!r}")
                    if ending in READABLE:
                        if key in images:
                            raise ValueError(f"Tar: {archive!r} holds two images of the sample {key!r}")
                        images[key] = (member.offset_data, member.size)
                    elif ending == _LABEL:
                        labels[key] = _label(os.pread(file.fileno(), member.size, member.offset_data), archive, key)
                # tarfile takes a damaged header for the end, which is a block of zeros.
                if os.pread(file.fileno(), tarfile.BLOCKSIZE, tar.offset).strip(b"\0"):
                    raise ValueError(f"Tar: {archive!r} is damaged at byte {tar.offset}")
        except tarfile.TarError as error:
            raise ValueError(f"Tar: {archive!r} is damaged, compressed or no tar archive: {error}") from error
        return {key: (*place, labels.get(key, -1)) for key, place in images.items()}

    def __len__(self) -> int:
        return len(self._places)

    def items(self, indices: np.ndarray) -> list[Any]:
        return [
            (self._files[archive].fileno(), offset, size)
            for archive, offset, size in self._places[indices, :3].tolist()
        ]

    def labels(self, indices: np.ndarray) -> np.ndarray:
        return self._places[indices, 3]

    def name(self, index: int) -> str:
        return f"{self.archives[self._places[index, 0]]}:{self._names[index]}"

    def fingerprint(self) -> str:
        names = "\0".join([*(os.path.basename(a) for a in self.archives), *self._names])
        return digest("Tar", names.encode(errors="surrogateescape"), self._places.tobytes())

    def __reduce__(self) -> tuple[type, tuple[list[str]]]:
        return Tar, (self.archives,)

    def __del__(self) -> None:
        for file in getattr(self, "_files", ()):
            file.close()


def _expand(pattern: str) -> list[str]:
    braces = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if braces is not None:
        first, last = braces[1], braces[2]
        numbers = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
        return [path for n in numbers for path in _expand(pattern[: braces.start()] + n + pattern[braces.end() :])]
    found = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern))
    if not found:
        raise FileNotFoundError(f"Tar: path is {pattern!r}, which does not exist")
    return found


def _label(text: bytes, archive: str, key: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"Tar: {archive!r}: the label of {key!r} is {text[:20]!r}, accepted is an integer") from error
