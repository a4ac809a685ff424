"""A worker process: it runs batches that lie in shared memory, one at a time.

It has two lanes, each with memory for the inputs and the outputs of a batch: while one batch runs, the parent writes
the next one's inputs and reads the last one's outputs in the other lane. A thread of the parent drives each lane.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import reduction
from typing import Any

import torch
from torch import Tensor, nn

from torchaccel import measure
from torchaccel.infer import _tensors, cores
from torchaccel.infer.errors import RemoteError, WorkerDied

LANES = 2
_PATIENCE_S = 5.0  # that a process gets to end by itself
_SPAWN = multiprocessing.get_context("spawn")  # forked processes would inherit threads' locks

Build = Callable[[], nn.Module]


class WorkerProcess:
    """The parent's side of a worker process."""

    def __init__(self, index: int, build: Build, threads: int, share: Sequence[int] | None, device: str) -> None:
        self.index, self.ready = index, False
        self.turn = threading.Lock()  # whoever talks to the process
        self.connection, other = _SPAWN.Pipe()
        arguments = other, build, threads, share, device
        self.process = _SPAWN.Process(target=_serve, args=arguments, daemon=True, name=f"torchaccel-worker-{index}")
        try:
            self.process.start()
        finally:
            other.close()

    def wait_until_ready(self) -> None:
        """Return when the model is loaded.

        Raises:
            WorkerDied: the process ended.
            Exception: what building the model raised.
        """
        _answer(self.receive("it loaded the model"))
        self.ready = True

    def lanes(self) -> list[Lane]:
        """The lanes, each for a thread of its own."""
        return [Lane(self, number) for number in range(LANES)]

    def send(self, message: Any, file: int | None = None) -> None:
        try:
            self.connection.send(message)
            if file is not None:
                reduction.send_handle(self.connection, file, self.process.pid)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._died("it got a batch") from error

    def receive(self, doing: str) -> Any:
        try:
            return self.connection.recv()
        except (EOFError, OSError) as error:
            raise self._died(doing) from error

    def stop(self) -> None:
        """Tell the process to end, or kill it if it runs a batch or still starts."""
        if self.ready and self.turn.acquire(blocking=False):
            with contextlib.suppress(OSError):  # it may have ended
                self.connection.send(("stop", 0))  # closing alone tells nothing where a fork holds the connection too
            self.connection.close()
            self.turn.release()
        else:
            self.process.kill()

    def join(self) -> None:
        """Wait for the end of the process, once nobody else uses it, and let go of what it held here."""
        self.process.join(_PATIENCE_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()
        self.connection.close()

    def _died(self, doing: str) -> WorkerDied:
        self.process.join(_PATIENCE_S)
        code = self.process.exitcode
        how = "still runs but does not answer" if code is None else f"ended with exit code {code}"
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            how = f"was killed by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")
        if not self.ready:
            how += ' (does the script keep its own work under `if __name__ == "__main__":`?)'
        return WorkerDied(f"worker process {self.index} (pid {self.process.pid}) {how} while {doing}")


class Lane:
    """The parent's side of one lane: used by one thread."""

    def __init__(self, worker: WorkerProcess, number: int) -> None:
        self._worker, self._number = worker, number
        self._inputs = self._outputs = torch.empty(0, dtype=torch.uint8)

    def start(self) -> None:
        """Nothing: the process is ready."""

    def run(self, inputs: tuple[Tensor, ...]) -> Any:
        """The model's outputs, in memory of this process.

        Raises:
            WorkerDied: the process ended.
            Exception: what the model raised.
        """
        header, tensors = _tensors.split(inputs)
        places, size = _tensors.arrange(tensors)
        file = None
        if size > len(self._inputs):
            file = _tensors.shared_file(_tensors.room(size))
        try:
            if file is not None:
                self._inputs = _tensors.mapped(file)
            _tensors.write(self._inputs, places, tensors)
            with self._worker.turn:
                answer = self._asked(header, places, file)
        finally:
            if file is not None:
                os.close(file)
        header, places = _answer(answer)
        return _tensors.join(header, [_tensors.view(self._outputs, place).clone() for place in places])

    def _asked(self, header: bytes, places: list[_tensors.Place], file: int | None) -> Any:
        try:
            if file is not None:
                self._worker.send(("inputs", self._number), file)
            self._worker.send(("run", self._number, header, places))
            answer = self._worker.receive("it ran a batch")
            return self._make_room(answer[1]) if answer[0] == "room" else answer
        except BaseException:
            self._worker.process.kill()  # it may wait for what will not come, such as a file that could not be made
            raise

    def _make_room(self, size: int) -> Any:
        file = _tensors.shared_file(_tensors.room(size))
        try:
            self._outputs = _tensors.mapped(file)
            self._worker.send(("outputs", self._number), file)
        finally:
            os.close(file)
        return self._worker.receive("it wrote outputs")


def _answer(answer: Any) -> Any:
    """What a process answered, or the exception that it tells of."""
    kind, *rest = answer
    if kind == "error":
        error, text = pickle.loads(rest[0]), rest[1]
        error.__cause__ = RemoteError(f"\n{text}")
        raise error
    return rest


def _told(error: Exception) -> tuple[str, bytes, str]:
    """An exception as a message; one that cannot be pickled becomes a RuntimeError that says the same."""
    text = traceback.format_exc()
    try:
        data = pickle.dumps(error)
        pickle.loads(data)
    except Exception:
        data = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return "error", data, text


def _serve(
    connection: multiprocessing.connection.Connection,
    build: Build,
    threads: int,
    share: Sequence[int] | None,
    device: str,
) -> None:
    """The whole life of a worker process; the end of the connection is its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends this one
    if share is not None:
        cores.pin(share)  # before the weights are loaded, so that they lie in memory near these cores
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        try:
            model = build()
        except Exception as error:
            return connection.send(_told(error))
        connection.send(("ready",))
        with measure.inference():
            _Server(connection, model, torch.device(device)).serve()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent closed the connection, or ended


def _end_with_parent() -> None:
    """However the parent ends, and even in the middle of a batch."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class _Server:
    """The process's side of all lanes."""

    def __init__(
        self, connection: multiprocessing.connection.Connection, model: nn.Module, device: torch.device
    ) -> None:
        self._connection, self._model, self._device = connection, model, device
        self._inputs = [torch.empty(0, dtype=torch.uint8)] * LANES
        self._outputs = list(self._inputs)

    def serve(self) -> None:
        while True:
            kind, lane, *rest = self._connection.recv()
            if kind == "stop":
                return
            if kind == "inputs":
                self._inputs[lane] = self._region()
                continue
            try:
                header, tensors = _tensors.split(self._run(lane, *rest))
                places, size = _tensors.arrange(tensors)
            except Exception as error:
                self._connection.send(_told(error))
                continue
            if size > len(self._outputs[lane]):
                self._connection.send(("room", size))
                self._connection.recv()
                self._outputs[lane] = self._region()
            _tensors.write(self._outputs[lane], places, tensors)
            self._connection.send(("done", header, places))

    def _run(self, lane: int, header: bytes, places: list[_tensors.Place]) -> Any:
        inputs = _tensors.join(header, [_tensors.view(self._inputs[lane], place) for place in places])
        return self._model(*(x.to(self._device) for x in inputs))

    def _region(self) -> Tensor:
        file = reduction.recv_handle(self._connection)
        try:
            return _tensors.mapped(file)
        finally:
            os.close(file)
