"""Where samples come from. A source has `__len__` and either `read(i)` or `items(indices)`; the rest is optional."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

READABLE = (".jpg", ".jpeg", ".png")
CONVERTIBLE = (".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")  # by `torchaccel pack`


@runtime_checkable
class Reading(Protocol):
    """A source of one's own: `read(i)` returns the bytes of a JPEG or PNG or a uint8 array [H, W, 3], alone or with a
    label as (data, label). It is called on the loader's threads, several at once."""

    def __len__(self) -> int: ...

    def read(self, index: int, /) -> Any: ...


@runtime_checkable
class Native(Protocol):
    """A source whose samples csrc/data reads by itself, without the GIL."""

    channels: int  # of the images
    shape: tuple[int, int] | None  # (height, width), where all images have the same

    def __len__(self) -> int: ...

    def items(self, indices: np.ndarray, /) -> list[Any]:
        """For each index a path, (descriptor, offset, count), the bytes of an image, or pixels uint8 [H, W, C]."""

    def labels(self, indices: np.ndarray, /) -> np.ndarray:
        """One label for each index; -1 where there are none."""

    def name(self, index: int, /) -> str: ...

    def fingerprint(self) -> str: ...


class ImageFolder:
    """JPEG and PNG files in one folder a class; the label is the class's position among the sorted names.

    Args:
        path: the folder; without folders in it, its own images are taken, with the label -1.

    Attributes:
        classes: the names.
        paths: of the images, sorted within each class.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        PermissionError: a folder in it cannot be read.

    Equivalent to torchvision.datasets.ImageFolder(path).
    """

    channels = 3
    shape: tuple[int, int] | None = None

    def __init__(self, path: str | Path) -> None:
        self.root = os.fspath(path)
        if not os.path.isdir(self.root):
            raise FileNotFoundError(f"ImageFolder: path is {self.root!r}, which is not a folder")
        self.classes = sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir())
        self.paths: list[str] = []
        labels: list[int] = []
        left_out: set[str] = set()
        folders = [os.path.join(self.root, name) for name in self.classes] or [self.root]
        for label, folder in enumerate(folders):
            found = list(find_images(folder, READABLE, left_out))
            self.paths += found
            labels += [label if self.classes else -1] * len(found)
        self._labels = np.asarray(labels, np.int64)
        if not self.paths:
            raise FileNotFoundError(f"ImageFolder: path is {self.root!r}, which holds no {', '.join(READABLE)}")
        if left_out:
            warnings.warn(
                f"ImageFolder: images of the types {', '.join(sorted(left_out))} are left out of {self.root!r}; "
                "`torchaccel pack` converts them",
                stacklevel=2,
            )

    def __len__(self) -> int:
        return len(self.paths)

    def items(self, indices: np.ndarray) -> list[Any]:
        return [self.paths[i] for i in indices]

    def labels(self, indices: np.ndarray) -> np.ndarray:
        return self._labels[indices]

    def name(self, index: int) -> str:
        return self.paths[index]

    def fingerprint(self) -> str:
        relative = "\0".join(os.path.relpath(path, self.root) for path in self.paths)
        return digest("ImageFolder", relative.encode(errors="surrogateescape"), self._labels.tobytes())


class Arrays:
    """Images that are in memory already, or mapped into it.

    Args:
        images: uint8 [N, H, W] or [N, H, W, C] with C of 1 or 3.
        labels: [N, ...] of any type, or None.

    Raises:
        ValueError: another shape or dtype, or a label too many or too few.

    Equivalent to torch.utils.data.TensorDataset(images, labels).
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray | Sequence[Any] | None = None) -> None:
        images = np.asarray(images)
        fits = images.dtype == np.uint8 and images.ndim in (3, 4) and (images.ndim == 3 or images.shape[3] in (1, 3))
        if not fits or 0 in images.shape:
            raise ValueError(
                f"Arrays: images are {images.dtype}{list(images.shape)}, accepted is uint8 [N, H, W] or [N, H, W, C] "
                "with C of 1 or 3, none empty"
            )
        self._images = images if images.flags.c_contiguous else np.ascontiguousarray(images)
        self._labels = np.full(len(images), -1) if labels is None else np.asarray(labels)
        if len(self._labels) != len(images):
            raise ValueError(f"Arrays: {len(images)} images have {len(self._labels)} labels")
        self.channels = 1 if images.ndim == 3 else images.shape[3]
        self.shape: tuple[int, int] | None = (images.shape[1], images.shape[2])

    def __len__(self) -> int:
        return len(self._images)

    def items(self, indices: np.ndarray) -> list[Any]:
        return [self._images[i] for i in indices]

    def labels(self, indices: np.ndarray) -> np.ndarray:
        return self._labels[indices]

    def name(self, index: int) -> str:
        return f"array {index}"

    def fingerprint(self) -> str:
        step = max(1, len(self) // 64)  # a look at some images, so that gigabytes need not be read
        return digest(
            f"Arrays {self._images.shape}", self._images[::step].tobytes(), np.ascontiguousarray(self._labels).tobytes()
        )


def find_images(folder: str, endings: Sequence[str], left_out: set[str]) -> Iterator[str]:
    """The images in a folder and below, sorted; endings of images that are not asked for go into `left_out`."""

    def refuse(error: OSError) -> None:
        raise error

    for at, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        folders.sort()
        for name in sorted(files):
            ending = os.path.splitext(name)[1].lower()
            if ending in endings:
                yield os.path.join(at, name)
            elif ending in CONVERTIBLE:
                left_out.add(ending)


def digest(name: str, *parts: bytes) -> str:
    """A short hash of a source's facts."""
    found = hashlib.blake2b(name.encode(), digest_size=16)
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.hexdigest()
