"""Making a packed file: once, resumable after an interruption, and there as a whole or not at all."""

from __future__ import annotations

import io
import json
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from torchaccel.data._decode import decoder, fill_with
from torchaccel.data._engines import cores
from torchaccel.data.packed import FIELDS, FOOTER, HEADER, KINDS, MAGIC, VERSION, index_bytes
from torchaccel.data.recipes import Plan
from torchaccel.data.sources import CONVERTIBLE, READABLE, digest, find_images

_FLUSHED = 256  # records between two moments from which an interrupted run goes on


@dataclass(frozen=True)
class PackResult:
    """What `pack` made: `failed` are (name, reason) of images that were left out."""

    path: str
    images: int
    bytes: int
    failed: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Job:
    """What a packed file is made of; a run goes on only with the same."""

    root: str
    names: list[str]  # relative to root
    labels: list[int]
    classes: list[str]
    kind: str
    short_side: int
    quality: int

    def fingerprint(self) -> str:
        facts = [os.stat(os.path.join(self.root, name)) for name in self.names]
        sizes = np.array([(fact.st_size, fact.st_mtime_ns) for fact in facts], np.int64)
        options = f"{VERSION} {self.kind} {self.short_side} {self.quality}"
        return digest(options, "\0".join(self.names).encode(errors="surrogateescape"), sizes.tobytes())


def pack(
    source: str | Path,
    path: str | Path,
    *,
    kind: str = "jpeg",
    short_side: int = 256,
    quality: int = 90,
    threads: int | None = None,
    skip: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> PackResult:
    """Convert a folder of images into one file for `Packed`; go on where an earlier run was interrupted.

    Args:
        source: a folder as ImageFolder takes it; BMP, GIF, PNM, TIFF and WebP are read too.
        path: the file to make; beside it lie `.partial` and `.journal` while it is being made.
        kind: "jpeg", or "raw" pixels, which are some ten times as large and need no decoding.
        short_side: pixels; larger images are resized to it, smaller ones stay as they are.
        quality: of JPEG, 1..95.
        threads: that convert; None takes one a core.
        skip: leave out images that cannot be read, and name them in the result, rather than raise.
        on_progress: called with (images done, images in all).

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        ValueError: an argument out of range, or an image that cannot be read, with its name.
        RuntimeError: Pillow is not installed.
        OSError: the file cannot be written.

    Equivalent to PIL.Image.open(file).resize(...).save(...) for each file.
    """
    _require_pillow()
    if kind not in KINDS or not 1 <= short_side <= 1 << 14 or not 1 <= quality <= 95:
        raise ValueError(
            f"pack: kind {kind!r}, short_side {short_side}, quality {quality}; accepted are {' or '.join(KINDS)}, "
            f"1..{1 << 14} and 1..95"
        )
    job = _find(os.fspath(source), kind, short_side, quality)
    target = os.fspath(path)
    partial, journal_path = target + ".partial", target + ".journal"
    records, done = _resume(job, partial, journal_path)
    workers = threads or cores()
    with open(partial, "r+b") as data, open(journal_path, "a") as journal:
        data.seek(0, os.SEEK_END)
        for position, outcome in enumerate(_converted(job, done, workers), start=done):
            if isinstance(outcome, str):
                if not skip:
                    raise ValueError(f"pack: {job.names[position]!r}: {outcome}")
                records.append({"failed": outcome})
            else:
                payload, height, width = outcome
                record = (data.tell(), len(payload), zlib.crc32(payload), height, width, job.labels[position])
                data.write(payload)
                records.append(dict(zip(FIELDS, record, strict=True)))
            if (position + 1) % _FLUSHED == 0:
                done = _flush(data, journal, records, done)
            if on_progress is not None:
                on_progress(position + 1, len(job.names))
        _flush(data, journal, records, done)
        size = _finish(job, data, records)
    os.replace(partial, target)
    _sync_folder(target)
    os.unlink(journal_path)
    failed = tuple((job.names[i], record["failed"]) for i, record in enumerate(records) if "failed" in record)
    return PackResult(target, len(records) - len(failed), size, failed)


def _find(root: str, kind: str, short_side: int, quality: int) -> _Job:
    if not os.path.isdir(root):
        raise FileNotFoundError(f"pack: source is {root!r}, which is not a folder")
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    names: list[str] = []
    labels: list[int] = []
    for label, folder in enumerate(classes or ["."]):
        found = list(find_images(os.path.join(root, folder), (*READABLE, *CONVERTIBLE), set()))
        names += [os.path.relpath(path, root) for path in found]
        labels += [label if classes else -1] * len(found)
    if not names:
        raise FileNotFoundError(f"pack: source is {root!r}, which holds no image")
    return _Job(root, names, labels, classes, kind, short_side, quality)


def _resume(job: _Job, partial: str, journal_path: str) -> tuple[list[dict[str, Any]], int]:
    """The records that an earlier run of the same job wrote, and how many images those are; else a fresh start."""
    fingerprint = job.fingerprint()
    records: list[dict[str, Any]] = []
    if os.path.exists(partial) and os.path.exists(journal_path):
        with open(journal_path) as journal:
            lines = journal.read().split("\n")[:-1]  # a last line without an end was being written
        if lines and lines[0] == fingerprint:
            records = [json.loads(line) for line in lines[1:]]
    end = max((r["offset"] + r["size"] for r in records if "offset" in r), default=HEADER.size)
    if records and os.path.getsize(partial) >= end:
        os.truncate(partial, end)
    else:
        records = []
        with open(partial, "wb") as data:
            data.write(HEADER.pack(MAGIC, VERSION, KINDS.index(job.kind)))
    with open(journal_path, "w") as journal:
        journal.write("\n".join([fingerprint, *map(json.dumps, records)]) + "\n")
    return records, len(records)


def _flush(data: BinaryIO, journal: Any, records: list[dict[str, Any]], done: int) -> int:
    """Make the records from `done` on safe: first their data, then the journal that names them."""
    data.flush()
    os.fsync(data.fileno())
    journal.write("".join(json.dumps(record) + "\n" for record in records[done:]))
    journal.flush()
    os.fsync(journal.fileno())
    return len(records)


def _finish(job: _Job, data: BinaryIO, records: list[dict[str, Any]]) -> int:
    kept = [(record, name) for record, name in zip(records, job.names, strict=True) if "offset" in record]
    if not kept:
        raise ValueError(f"pack: none of the {len(records)} images in {job.root!r} can be read")
    table = np.array([tuple(record[name] for name in FIELDS) for record, _ in kept], dtype=list(FIELDS.items()))
    index, start = index_bytes(table, [name for _, name in kept], job.classes), data.tell()
    data.write(index + FOOTER.pack(start, len(index), MAGIC))
    data.flush()
    os.fsync(data.fileno())
    return data.tell()


def _sync_folder(path: str) -> None:
    folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _converted(job: _Job, start: int, workers: int) -> Iterator[tuple[bytes, int, int] | str]:
    """For each image from `start` on, in order: (bytes, height, width), or why it cannot be read."""
    with ThreadPoolExecutor(workers) as threads:
        waiting: deque[Future] = deque()
        try:
            for name in job.names[start:]:
                waiting.append(threads.submit(_convert, job, name))
                if len(waiting) > 4 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _convert(job: _Job, name: str) -> tuple[bytes, int, int] | str:
    from PIL import Image

    try:
        data = Path(job.root, name).read_bytes()
        image = Image.open(io.BytesIO(data))
        width, height = image.size
        share = min(1.0, job.short_side / min(width, height))
        size = (max(1, round(height * share)), max(1, round(width * share)))
        pixels = _resized(data, image, size)
        if job.kind == "raw":
            return pixels.tobytes(), *size
        if share == 1.0 and image.format == "JPEG":
            return data, *size
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "JPEG", quality=job.quality)
        return out.getvalue(), *size
    except Exception as error:  # Pillow's readers raise many kinds for damaged files
        return str(error) or type(error).__name__


def _resized(data: bytes, image: Any, size: tuple[int, int]) -> np.ndarray:
    """uint8 [height, width, 3], by the loader's own decoder where it can: it refuses damage that Pillow passes over."""
    from PIL import Image

    if image.format in ("JPEG", "PNG"):
        plan = Plan(size=size, channels=3, resize="exact", resize_to=size, channels_last=True)
        out = np.empty((1, *size, 3), np.uint8)
        fill_with(decoder().by)(plan, data, 0, 0, 0, out, 0)
        return out[0]
    resized = image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def _require_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise RuntimeError("pack: Pillow is not installed; `pip install pillow` brings it") from error
