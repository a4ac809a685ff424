"""From a model, or where it lies, to the workers that run it."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchaccel.infer._process import WorkerProcess
from torchaccel.infer._thread import SharedModel, WorkerThread
from torchaccel.workflow.checkpoint import load, read_metadata

Crew = Sequence[WorkerThread | WorkerProcess]
Shares = Sequence[list[int] | None]


class Source:
    """A model in eval mode, or a checkpoint with the function that builds its float model; checked."""

    def __init__(self, model: Any, model_fn: Any) -> None:
        if isinstance(model, nn.Module):
            if model_fn is not None:
                raise ValueError("Workers: model_fn is given with a module, accepted only with a checkpoint's path")
            if any(module.training for module in model.modules()):
                raise ValueError("Workers: the model, or a part of it, is in training mode; call model.eval() before")
        elif isinstance(model, str | os.PathLike):
            if not callable(model_fn):
                raise ValueError(f"Workers: model_fn is {model_fn!r}, accepted with a path is a function")
            read_metadata(model)
        else:
            raise ValueError(f"Workers: the model is a {type(model).__name__}, accepted is a module or a path")
        self._model, self._model_fn = model, model_fn

    def model(self, device: str) -> nn.Module:
        """The model, in this process."""
        if isinstance(self._model, nn.Module) and torch.device(device).type != "cpu":
            raise ValueError(
                f"Workers: device is {device!r}, accepted for a module on threads is none: it runs where it is"
            )
        return self._model if isinstance(self._model, nn.Module) else load(self._model, self._model_fn, device)

    def data(self) -> bytes:
        """What another process makes the model of, by `_built`."""
        made = self._model if isinstance(self._model, nn.Module) else (Path(self._model).absolute(), self._model_fn)
        try:
            return pickle.dumps(made, protocol=pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            what = "the model" if made is self._model else "model_fn"
            raise ValueError(
                f"Workers: {what} cannot be sent to a process, {error}; accepted are what pickle takes, and "
                "a checkpoint's path with a function of a module"
            ) from error


def start_threads(source: Source, threads: int, shares: Shares, device: str) -> Sequence[WorkerThread]:
    """A worker thread for each share of the cores, all with one model."""
    if len(shares) > 1 and not torch.backends.openmp.is_available():
        raise ValueError(
            "Workers: this torch, built without OpenMP, has one intra-op pool for all threads; "
            "accepted are processes=True, or one worker"
        )
    model = source.model(device)
    if len(shares) > 1 and any(tensor.device.type != "cpu" for tensor in model.parameters()):
        raise ValueError(f"Workers: the model of {len(shares)} threads is not on the CPU; accepted is processes=True")
    shared = SharedModel(model)
    return [WorkerThread(shared, threads, share) for share in shares]


def start_processes(source: Source, threads: int, shares: Shares, device: str) -> Sequence[WorkerProcess]:
    """A worker process for each share of the cores, ready to run."""
    if not hasattr(os, "memfd_create"):
        raise ValueError("Workers: processes=True needs Linux, for memory that processes share")
    data = source.data()
    crew: list[WorkerProcess] = []
    try:
        for index, share in enumerate(shares):
            where = _device_of(index, device)
            crew.append(WorkerProcess(index, partial(_built, data, where), threads, share, where))
        for worker in crew:
            worker.wait_until_ready()
    except BaseException:
        for worker in crew:
            worker.stop()
        for worker in crew:
            worker.join()
        raise
    return crew


def _built(data: bytes, device: str) -> nn.Module:
    """The model of `Source.data`, in a worker process."""
    made = pickle.loads(data)
    if isinstance(made, nn.Module):
        return made if device == "cpu" else made.to(device)
    path, model_fn = made
    return load(path, model_fn, device)


def _device_of(index: int, device: str) -> str:
    """A GPU for each process, in turns, where `device` names none."""
    given = torch.device(device)
    if given.type == "cuda" and given.index is None:
        return f"cuda:{index % max(1, torch.cuda.device_count())}"
    return device
