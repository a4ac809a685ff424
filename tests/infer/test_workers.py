"""Workers: order, memory, errors at their place; on threads, and on two processes that the tests share."""

from __future__ import annotations

import os
import pickle
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import torchaccel as ta
from tests.infer.modules import Nested, Probe, Waiting
from tests.models import SmallNet, settled
from torchaccel.infer import BatchError, Workers, cores


class Several(torch.nn.Module):
    """One model that does what the first input's number of dimensions asks for, so that processes start once."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.nested, self.probe = settled(SmallNet()), Nested(), Probe()
        self.eval()

    def forward(self, x: Tensor, *rest: Tensor) -> object:
        return self.nested(x, *rest) if rest else self.probe(x) if x.dim() == 1 else self.net(x)


MODEL = Several()


@pytest.fixture(scope="module", params=["threads", "processes"])
def workers(request: pytest.FixtureRequest) -> Iterator[Workers]:
    with Workers(MODEL, workers=2, threads=1, processes=request.param == "processes") as made:
        yield made


def word(value: int) -> Tensor:
    return torch.tensor([float(value)])


def images(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1 + i % 5, 3, 16, 16, generator=generator) for i in range(count)]


def test_outputs_are_those_of_a_plain_loop_in_order_to_the_bit(workers: Workers) -> None:
    batches = [(x.to(memory_format=torch.channels_last) if i % 2 else x, i) for i, x in enumerate(images(23))]
    with torch.no_grad():
        expected = [MODEL(x) for x, _ in batches]
    results = list(workers.map(batches))
    assert [batch is given for (batch, _), given in zip(results, batches, strict=True)] == [True] * 23
    assert all(torch.equal(outputs, y) for (_, outputs), y in zip(results, expected, strict=True))
    assert not results[0][1].requires_grad


def test_nested_outputs_keep_their_kinds_types_and_layouts(workers: Workers) -> None:
    x, y = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    expected = MODEL(x, y)
    ((_, given),) = workers.map([((x, y), "labels")])
    assert list(given) == list(expected)
    pair, (empty, nothing, three) = given["rest"]
    assert type(pair).__name__ == "Pair" and pair.text == "words" and pair.mean == x.mean()
    assert empty.shape == (0, 3, 4, 4) and nothing is None and three == 3
    for name in ("turned", "y", "same"):
        assert torch.equal(given[name], expected[name]) and given[name].dtype == expected[name].dtype
        assert given[name].stride() == expected[name].stride()


def test_results_stay_when_later_batches_use_the_same_memory(workers: Workers) -> None:
    first = [workers.submit(torch.full((1, 3, 16, 16), float(i))) for i in range(12)]
    with torch.no_grad():
        assert all(torch.equal(f.result(), MODEL(torch.full((1, 3, 16, 16), float(i)))) for i, f in enumerate(first))


@pytest.mark.parametrize("count", [0, 1, 9])
def test_no_more_batches_are_drawn_than_two_for_each_worker(workers: Workers, count: int) -> None:
    drawn = 0

    def batches() -> Iterator[Tensor]:
        nonlocal drawn
        for i in range(count):
            drawn += 1
            yield word(i)

    results = workers.map(batches())
    assert drawn == 0
    for done, (batch, outputs) in enumerate(results, 1):
        assert batch.item() == outputs["word"] == done - 1
        assert drawn == min(count, done - 1 + 4)
    assert drawn == count


def test_batches_that_the_caller_is_done_with_are_let_go(workers: Workers) -> None:
    drawn: list[weakref.ref[Tensor]] = []

    def batches() -> Iterator[Tensor]:
        for i in range(12):
            end = time.monotonic() + 10
            while sum(each() is not None for each in drawn) > 3 and time.monotonic() < end:
                time.sleep(0.001)  # a worker that has just finished may still hold its batch
            assert sum(each() is not None for each in drawn) <= 3
            batch = word(i)
            drawn.append(weakref.ref(batch))
            yield batch
            del batch

    for batch, outputs in workers.map(batches()):
        del batch, outputs


def test_a_batch_that_fails_raises_at_its_place_with_its_index(workers: Workers) -> None:
    results = workers.map(map(word, [5, 6, -1, 7, 8]))
    assert [next(results)[1]["word"], next(results)[1]["word"]] == [5, 6]
    with pytest.raises(BatchError, match="batch 2: KeyError: 'minus one'") as caught:
        next(results)
    assert caught.value.index == 2 and isinstance(caught.value.__cause__, KeyError)
    assert list(results) == []
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.index == 2 and str(again) == str(caught.value)
    assert workers.submit(word(9)).result()["word"] == 9


def test_errors_can_be_yielded_and_the_rest_goes_on(workers: Workers) -> None:
    batches = [word(1), word(-1), "words", (), ([word(1), None],), word(-3), word(2)]
    outputs = [given for _, given in workers.map(batches, on_error="yield")]
    assert [outputs[0]["word"], outputs[-1]["word"]] == [1, 2]
    assert [error.index for error in outputs[1:-1]] == [1, 2, 3, 4, 5]
    assert "accepted is a tensor, or a tuple" in str(outputs[2])
    assert "Unpicklable" in str(outputs[5])


def test_what_the_iterable_raises_comes_after_the_batches_before(workers: Workers) -> None:
    def batches() -> Iterator[Tensor]:
        yield word(1)
        yield word(2)
        raise OSError("disk")

    seen = []
    with pytest.raises(OSError, match="disk"):
        for _, outputs in workers.map(batches()):
            seen.append(outputs["word"])
    assert seen == [1, 2]


def test_workers_run_where_and_as_they_were_told(workers: Workers) -> None:
    before = torch.get_num_threads()
    found = [outputs for _, outputs in workers.map([word(i) for i in range(200)])]
    places = {(each["pid"], each["thread"]): each["cores"] for each in found}
    assert len(places) == 2
    assert all(each["intra_op"] == 1 and not each["grad"] for each in found)
    assert ({os.getpid()} == {pid for pid, _ in places}) is not workers.processes
    mine = sorted(os.sched_getaffinity(0))
    if 2 <= len(mine) == cores.usable():  # no quota
        one, other = places.values()
        assert not set(one) & set(other) and sorted(one + other) == mine
    late: list[int] = []
    thread = threading.Thread(target=lambda: late.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert torch.get_num_threads() == before == late[0]


def test_a_loader_and_its_labels_go_through(workers: Workers) -> None:
    arrays = ta.data.Arrays(np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8), np.arange(20))
    with ta.data.Loader(arrays, 6, [ta.data.Normalize()]) as loader:
        results = [(x.clone(), labels.tolist(), outputs) for (x, labels), outputs in workers.map(loader)]
    assert [label for _, labels, _ in results for label in labels] == list(range(20))
    with torch.no_grad():
        assert all(torch.equal(MODEL(x), outputs) for x, _, outputs in results)


def test_a_caller_that_leaves_cancels_what_waits(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with Workers(Waiting(gate).eval(), workers=1) as workers:
        running, waiting = workers.submit(word(1)), workers.submit(word(2))
        assert waiting.cancel()
        gate.touch()
        assert running.result() == 2
        with pytest.raises(CancelledError):
            waiting.result()
        for _ in workers.map(word(i) for i in range(10)):
            break
    with pytest.raises(RuntimeError, match="closed"):
        workers.submit(word(1))


def test_leaving_finishes_what_was_submitted_and_an_error_drops_what_waits(tmp_path: Path) -> None:
    before = threading.active_count()
    gate = tmp_path / "gate"
    with Workers(Waiting(gate).eval(), workers=2) as workers:
        futures = [workers.submit(word(i)) for i in range(5)]
        gate.touch()
    assert [future.result().item() for future in futures] == [1, 2, 3, 4, 5]
    gate.unlink()
    with pytest.raises(KeyboardInterrupt), Workers(Waiting(gate).eval(), workers=1) as workers:
        running, waiting = workers.submit(word(1)), workers.submit(word(2))
        while not running.running():
            pass
        threading.Timer(0.2, gate.touch).start()
        raise KeyboardInterrupt
    assert running.result() == 2 and waiting.cancelled()
    assert threading.active_count() == before


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"workers": 0}, "workers is 0, accepted is an int of at least 1"),
        ({"workers": True}, "workers is True"),
        ({"workers": 1, "threads": 0}, "threads is 0"),
        ({"workers": 1, "device": "nope"}, "device is 'nope', accepted are names such as cpu and cuda"),
        ({"workers": 1, "device": "cuda"}, "accepted for a module on threads is none: it runs where it is"),
        ({"workers": 1, "model": SmallNet()}, "training mode"),
        ({"workers": 1, "model": 3}, "the model is a int, accepted is a module or a path"),
        ({"workers": 1, "model_fn": SmallNet}, "model_fn is given with a module"),
        ({"workers": 1, "model": "m.safetensors"}, "model_fn is None"),
    ],
)
def test_bad_arguments_are_refused_before_anything_starts(arguments: dict, message: str) -> None:
    before = threading.active_count()
    with pytest.raises(ValueError, match=message):
        Workers(**{"model": MODEL} | arguments)
    assert threading.active_count() == before


def test_autocast_around_a_batch_is_refused(workers: Workers) -> None:
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="accepted is within forward"):
        workers.submit(torch.ones(1))


def test_map_refuses_another_way_with_errors_at_once(workers: Workers) -> None:
    with pytest.raises(ValueError, match="on_error is 'skip', accepted are raise, yield"):
        workers.map([], on_error="skip")
