"""Workers: a model that runs on several batches at once, on threads or processes."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor, nn

from torchaccel.infer import cores
from torchaccel.infer._crew import Crew, Source, start_processes, start_threads
from torchaccel.infer._jobs import Job, Jobs
from torchaccel.infer._process import Lane
from torchaccel.infer._thread import WorkerThread
from torchaccel.infer.errors import BatchError, WorkerDied

ON_ERROR = ("raise", "yield")
_AHEAD = 2  # batches in flight for each worker: one that runs, one that waits


class Workers:
    """A model that runs on several batches at once: on threads of this process, or on processes of their own.

    Threads share the weights and the inputs, and so a model that writes to itself in `forward` needs processes; what
    Python does between operators threads do in turns. Processes load the model once each and get inputs and give
    outputs through shared memory; they end with this one, however it ends. Threads need an intra-op pool that each of
    them may size, which torch has where it is built on OpenMP.

    A script that starts processes keeps its own work under `if __name__ == "__main__":`, as they import it.

    Args:
        model: a module in eval mode, which processes get a copy of by pickle; or the path of a checkpoint of `ta.save`.
        model_fn: with a path, what builds the float model, as in `ta.load`; for processes a function of a module.
        workers: batches that run at once.
        threads: intra-op threads of each worker; None shares the cores that affinity and cgroup allow.
        processes: whether workers are processes instead of threads.
        pin: whether each worker keeps to its share of the cores, neighbours of each other; shares overlap where
            workers * threads are more than there are. Nothing is pinned under a cgroup's quota of cores.
        device: where processes and checkpoints put the model; "cuda" gives worker i of several processes GPU i, modulo
            their number. Inputs go there, and outputs of processes come back to the CPU.

    Raises:
        ValueError: an argument that is out of range, a model in training mode or one that cannot be pickled, several
            worker threads for a model on a GPU.
        WorkerDied: a process ended while it started.
        Exception: what loading the model raised.

    Equivalent to `concurrent.futures.ThreadPoolExecutor(workers).map(model, batches)` in bounded memory, with
    `torch.set_num_threads(threads)` in each thread.
    """

    def __init__(
        self,
        model: nn.Module | str | os.PathLike[str],
        model_fn: Callable[[], nn.Module] | None = None,
        *,
        workers: int,
        threads: int | None = None,
        processes: bool = False,
        pin: bool = True,
        device: str = "cpu",
    ) -> None:
        _at_least_one("workers", workers)
        threads = max(1, cores.usable() // workers) if threads is None else threads
        _at_least_one("threads", threads)
        try:
            torch.device(device)
        except RuntimeError as error:
            raise ValueError(f"Workers: device is {device!r}, accepted are names such as cpu and cuda") from error
        self.workers, self.threads, self.processes = workers, threads, processes
        self._jobs = Jobs(workers)
        self._broken: WorkerDied | None = None
        start: Callable[..., Crew] = start_processes if processes else start_threads
        shares = cores.shares(workers, threads) if pin else None
        self._crew: Crew = start(Source(model, model_fn), threads, shares or [None] * workers, device)
        self._drivers: list[threading.Thread] = []
        self._process = os.getpid()
        try:
            self._start_drivers()
        except BaseException:
            self.close(cancel=True)
            raise
        _running.add(self)

    def submit(self, batch: Any) -> Future[Any]:
        """Run the model on one batch as soon as a worker is free.

        Args:
            batch: a tensor, or a tuple or list whose first item is the input: a tensor, or a tuple of them for a model
                that takes several.

        Returns:
            The future of the model's outputs. A batch that waits can be cancelled. `submit` never blocks, so that the
            caller bounds how many batches wait; `map` does.

        Raises:
            ValueError: a batch of another kind.
            RuntimeError: the workers are closed.
            WorkerDied: a worker process has ended.
        """
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                raise ValueError("Workers: autocast is on, which workers know nothing of; accepted is within forward")
        job = Job(_inputs_of(batch))
        if not self._jobs.put(job):
            raise self._broken or RuntimeError("Workers: they are closed, and take no more batches")
        return job.future

    def map(self, batches: Iterable[Any], on_error: str = "raise") -> Iterator[tuple[Any, Any]]:
        """Run the model on all batches; two for each worker are in flight, and no more are drawn from `batches`.

        Args:
            batches: as for `submit`; drawn one by one in the thread that iterates, such as a ta.data.Loader.
            on_error: what a batch that fails does at its place: "raise" its BatchError, which ends the iteration, or
                "yield" it in place of the outputs, and go on.

        Yields:
            (batch, outputs), in the order of `batches`.

        Raises:
            ValueError: another `on_error`.
            BatchError: a batch failed, or is none, with its index and the cause.
            WorkerDied: a worker process ended.
            Exception: what `batches` raised, after the results of the batches before.
        """
        if on_error not in ON_ERROR:
            raise ValueError(f"map: on_error is {on_error!r}, accepted are {', '.join(ON_ERROR)}")
        return self._map(iter(batches), on_error)

    def close(self, cancel: bool = False) -> None:
        """End the workers after the batches that were submitted, or with `cancel` without those that still wait.

        With `cancel` processes end in the middle of a batch; threads finish theirs.
        """
        for job in self._jobs.close(drop=cancel):
            job.future.cancel()
        if cancel:
            for worker in self._crew:
                worker.stop()
        for driver in self._drivers:
            if driver is not threading.current_thread():
                driver.join()
        crew, self._crew = self._crew, ()
        for worker in crew:
            worker.stop()
        for worker in crew:
            worker.join()
        _running.discard(self)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self.close(cancel=kind is not None)

    def _map(self, batches: Iterator[Any], on_error: str) -> Iterator[tuple[Any, Any]]:
        flight: deque[tuple[Any, Future[Any]]] = deque()
        index, failure = 0, None
        more = True
        try:
            while True:
                while more and len(flight) < _AHEAD * self.workers:
                    try:
                        batch = next(batches)
                    except StopIteration:
                        more = False
                    except Exception as error:
                        more, failure = False, error
                    else:
                        flight.append((batch, self._submitted(batch)))
                        del batch
                if not flight:
                    break
                batch, future = flight.popleft()
                outputs = _outcome(index, future, on_error)
                del future
                yield batch, outputs
                del batch, outputs  # a loader fills memory again that nothing refers to
                index += 1
        finally:
            for _, future in flight:
                future.cancel()
        if failure is not None:
            raise failure

    def _submitted(self, batch: Any) -> Future[Any]:
        """The future of a batch; one that cannot be submitted fails at its place."""
        try:
            return self.submit(batch)
        except Exception as error:
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return failed

    def _start_drivers(self) -> None:
        before = torch.get_num_threads()
        for index, worker in enumerate(self._crew):
            for lane in worker.lanes():
                started: Future[None] = Future()
                arguments = index, lane, self._jobs.enter(index), started
                driver = threading.Thread(target=self._drive, args=arguments, daemon=True, name=f"infer-{index}")
                driver.start()
                self._drivers.append(driver)
                started.result()
        torch.set_num_threads(before)  # what a thread sets for itself, torch also gives to threads that start later

    def _drive(
        self, index: int, lane: WorkerThread | Lane, entered: SimpleQueue[Job | None], started: Future[None]
    ) -> None:
        try:
            lane.start()
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(None)
        job = entered.get()
        while job is not None:
            if job.future.set_running_or_notify_cancel():
                self._run(lane, job)
            self._jobs.done(index)
            del job  # or its inputs would stay until the next one comes
            job = self._jobs.take(index)

    def _run(self, lane: WorkerThread | Lane, job: Job) -> None:
        try:
            outputs = lane.run(job.inputs)
        except WorkerDied as error:
            self._broken = self._broken or error
            waiting = self._jobs.close(drop=True)
            for each in (job, *waiting):
                if each is job or each.future.set_running_or_notify_cancel():
                    each.future.set_exception(error)
        except BaseException as error:
            job.future.set_exception(error)
            del job  # the error's traceback holds this frame, and the future the error
        else:
            job.future.set_result(outputs)


def _inputs_of(batch: Any) -> tuple[Tensor, ...]:
    given = batch
    if isinstance(batch, tuple | list):
        given = batch[0] if batch else None
    inputs = tuple(given) if isinstance(given, tuple | list) else (given,)
    if not inputs or not all(isinstance(x, Tensor) for x in inputs):
        inner = f" of {type(given).__name__}" if given is not batch else ""
        raise ValueError(
            f"Workers: a batch is a {type(batch).__name__}{inner}; accepted is a tensor, or a tuple or list "
            "whose first item is a tensor or a tuple of tensors"
        )
    return inputs


def _outcome(index: int, future: Future[Any], on_error: str) -> Any:
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, WorkerDied):
        raise error
    failed = BatchError(index, error)
    if on_error == "raise":
        raise failed
    return failed


def _at_least_one(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"Workers: {name} is {value!r}, accepted is an int of at least 1")


_running: weakref.WeakSet[Workers] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Threads that run a model while the interpreter is taken down would crash it."""
    for workers in list(_running):
        if workers._process == os.getpid():  # a fork has none of the threads, and must not end the processes
            workers.close(cancel=True)
