"""`torchaccel infer`: run a checkpoint on a folder of images or an array, on as many workers as were measured best."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from torchaccel.cli.commands import Json, app
from torchaccel.cli.output import emit, only_json, say
from torchaccel.report import replacing

_SHORT_SIDE = 256 / 224  # of what is cut out of its middle, as ImageNet's validation images are prepared


@app.command()
def infer(
    checkpoint: Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint of torchaccel.")],
    model: Annotated[str, typer.Argument(metavar="MODEL", help="module:function that builds its float model.")],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help=".npy: all outputs; .csv: each one's largest place and its value.")
    ],
    images: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Images, resized, cut and normalized as ImageNet's.")
    ] = None,
    arrays: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Inputs, samples first: .npy; float64 as float32.")
    ] = None,
    size: Annotated[int, typer.Option(help="Height and width that --images are brought to.")] = 224,
    batch: Annotated[int, typer.Option(help="Samples of a batch.")] = 16,
    workers: Annotated[
        str, typer.Option(metavar="auto|N", help="Batches at once; auto measures what is best.")
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="CPU threads of each worker; the cores shared without it.")
    ] = None,
    processes: Annotated[bool, typer.Option("--processes", help="Workers are processes; with auto, also.")] = False,
    json: Json = False,
) -> None:
    """Run a model on all images of a folder or all samples of an array, and write what comes out, in order."""
    from torchaccel.cli import arguments
    from torchaccel.infer import BatchError, Workers, plan

    with only_json(json), _others_on_stderr(json):
        if (images is None) == (arrays is None):
            raise ValueError("--images and --arrays: accepted is one of the two")
        if workers != "auto" and not (workers.isdecimal() and int(workers) > 0):
            raise ValueError(f"--workers is {workers!r}, accepted are auto and at least 1")
        if workers == "auto" and threads is not None:
            raise ValueError("--threads is given with --workers auto, which measures it; accepted with a number")
        if batch < 1 or size < 1 or (threads is not None and threads < 1):
            raise ValueError("--batch, --size and --threads: accepted is at least 1")
        if out.suffix not in (".npy", ".csv"):
            raise ValueError(f"--out is {str(out)!r}, accepted are .npy and .csv files")
        build: Any = arguments.find_function("MODEL", model)
        if not out.parent.is_dir():
            raise ValueError(f"--out is {str(out)!r}, accepted is a file in an existing folder")
        source = _images(images, size, batch) if images is not None else _arrays(arrays, batch)  # type: ignore[arg-type]
        measured = None
        if workers == "auto":
            first = next(iter(source.batches))
            try:
                measured = plan(checkpoint, (_inputs(first),), build, processes=processes)
            except (ValueError, OSError):
                raise
            except Exception as error:
                raise ValueError(f"MODEL failed on the first batch: {type(error).__name__}: {error}") from error
            crew = measured.start()
        else:
            crew = Workers(checkpoint, build, workers=int(workers), threads=threads, processes=processes)
        begin = time.perf_counter()
        try:
            with crew, _writing(out, source.names, source.count) as write:
                for given, outputs in crew.map(source.batches):
                    write(_rows(outputs, len(_inputs(given))))
        except BatchError as error:
            raise ValueError(f"MODEL failed on {error}") from error
        took = time.perf_counter() - begin
    about = {"out": str(out), "samples": source.count, "seconds": took, "samples_per_s": source.count / took}
    split = {"workers": crew.workers, "threads": crew.threads, "processes": crew.processes}
    if json:
        emit(about | split | {"plan": None if measured is None else measured.to_dict()})
        return
    if measured is not None:
        say(measured.summary())
    say(f"{out}: {source.count} samples, {about['samples_per_s']:.1f} a second")


@contextmanager
def _others_on_stderr(wanted: bool) -> Iterator[None]:
    """Processes that start meanwhile, which know nothing of `only_json`, print on standard error."""
    if not wanted:
        yield
        return
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


class _Inputs:
    """Batches, how many samples they hold, and what each is called."""

    def __init__(self, batches: Iterable[Any], count: int, names: Sequence[object]) -> None:
        self.batches, self.count, self.names = batches, count, names


def _images(folder: Path, size: int, batch: int) -> _Inputs:
    from torchaccel.data import CenterCrop, ImageFolder, Loader, Normalize, Resize
    from torchaccel.data.recipes import Step

    source = ImageFolder(folder)
    recipe: list[Step] = [Resize(round(size * _SHORT_SIDE)), CenterCrop(size), Normalize()]
    return _Inputs(Loader(source, batch, recipe, rank=0, world=1), len(source), source.paths)


def _arrays(path: Path, batch: int) -> _Inputs:
    if path.suffix != ".npy" or not path.is_file():
        raise ValueError(f"--arrays is {str(path)!r}, accepted is an .npy file that exists")
    try:
        samples = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, TypeError, EOFError) as error:
        raise ValueError(f"--arrays {path} is no array of numbers ({error})") from error
    if samples.ndim == 0 or len(samples) == 0:
        raise ValueError(f"--arrays {path} has the shape {samples.shape}, accepted are samples first, at least one")
    return _Inputs(_Slices(samples, batch), len(samples), range(len(samples)))


class _Slices:
    """Batches of an array that is mapped, read as they are drawn."""

    def __init__(self, samples: np.ndarray, batch: int) -> None:
        self._samples, self._batch = samples, batch

    def __iter__(self) -> Iterator[Tensor]:
        for start in range(0, len(self._samples), self._batch):
            samples = np.asarray(self._samples[start : start + self._batch])
            wanted = np.float32 if samples.dtype == np.float64 else samples.dtype.newbyteorder("=")
            yield torch.from_numpy(samples.astype(wanted))  # a copy


@contextmanager
def _writing(path: Path, names: Sequence[object], count: int) -> Iterator[Callable[[Any], None]]:
    """The function that takes the outputs of one batch after the other; the file is moved into place at the end."""
    with replacing(path) as temporary:
        writer = _Array(temporary, count) if path.suffix == ".npy" else _Table(temporary, names)
        try:
            yield writer.write
        finally:
            writer.close()


class _Array:
    """All outputs as one array, [samples, ...], in a file that is mapped."""

    def __init__(self, path: Path, count: int) -> None:
        self._path, self._count, self._done = path, count, 0
        self._array: np.memmap | None = None

    def write(self, rows: np.ndarray) -> None:
        if self._array is None:
            shape = self._count, *rows.shape[1:]
            self._array = np.lib.format.open_memmap(self._path, "w+", rows.dtype, shape)
        if rows.shape[1:] != self._array.shape[1:]:
            raise ValueError(
                f"--out .npy: outputs change their shape, from {self._array.shape[1:]} to {rows.shape[1:]}"
            )
        self._array[self._done : self._done + len(rows)] = rows
        self._done += len(rows)

    def close(self) -> None:
        if self._array is not None:
            self._array.flush()


class _Table:
    """A line for each sample: its name, and the place and the value of its largest output."""

    def __init__(self, path: Path, names: Sequence[object]) -> None:
        self._file = open(path, "w", newline="")
        self._writer = csv.writer(self._file)
        self._writer.writerow(("sample", "class", "value"))
        self._names = iter(names)

    def write(self, rows: np.ndarray) -> None:
        if rows.ndim != 2:
            raise ValueError(
                f"--out .csv: outputs have the shape {rows.shape}, accepted are samples x classes; use .npy"
            )
        for row, name in zip(rows, self._names, strict=False):
            self._writer.writerow((name, best := int(row.argmax()), float(row[best])))

    def close(self) -> None:
        self._file.close()


def _inputs(batch: Any) -> Tensor:
    return batch[0] if isinstance(batch, tuple) else batch


def _rows(outputs: Any, samples: int) -> np.ndarray:
    """The outputs of a batch, one row for each sample."""
    if not isinstance(outputs, Tensor) or outputs.dim() == 0:
        raise ValueError(f"--out: the model returns a {type(outputs).__name__}, accepted is a tensor, samples first")
    if len(outputs) != samples:
        raise ValueError(
            f"--out: the model returns {len(outputs)} rows for a batch of {samples}, accepted is one for each sample"
        )
    return (outputs.float() if outputs.dtype == torch.bfloat16 else outputs).numpy()
