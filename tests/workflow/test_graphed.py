"""Graphed: what is captured, when, and that results stay; torch.cuda is replaced by a recorder on the CPU."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.workflow.recorder import Recorder
from torchaccel.workflow import graphed
from torchaccel.workflow.graphed import CAPACITY, Graphed


@pytest.fixture(autouse=True)
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(graphed, "backend", made)
    return made


class Nested(nn.Module):
    """Nested inputs and outputs, one of them given twice, and constants."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor, more: dict[str, Any], scale: float = 1.0, *, shift: Tensor) -> dict[str, Any]:
        y = self.linear(x) * scale + shift
        return {"y": y, "again": [y, "text", None], "sum": (more["a"] + more["b"][0], x.shape[0])}


def called(model: nn.Module, *args: Any, times: int = 3, **kwargs: Any) -> Any:
    for _ in range(times):
        result = model(*args, **kwargs)
    return result


def test_a_shape_is_captured_when_it_comes_again(recorder: Recorder) -> None:
    model = nn.Linear(4, 3).eval()
    fast = Graphed(model)
    x = torch.randn(2, 4)
    fast(x)
    assert recorder.captures == 0
    for seed in range(3):
        x = torch.randn(2, 4, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(fast(x), model(x))
    assert (recorder.captures, recorder.replays) == (1, 3)


def test_a_later_call_never_overwrites_an_earlier_result(recorder: Recorder) -> None:
    model = Nested().eval()
    fast = Graphed(model)
    inputs = [(torch.randn(2, 4), {"a": torch.randn(2), "b": [torch.randn(2)]}, torch.randn(3)) for _ in range(6)]
    results = [fast(x, more, shift=shift) for x, more, shift in inputs]
    assert recorder.captures == 1 and recorder.replays == 5
    for (x, more, shift), result in zip(inputs, results, strict=True):
        expected = model(x, more, shift=shift)
        assert torch.equal(result["y"], expected["y"]) and torch.equal(result["sum"][0], expected["sum"][0])
        assert result["y"] is result["again"][0] and result["again"][1:] == ["text", None] and result["sum"][1] == 2
    results[-1]["y"].zero_()  # the caller's own
    x, more, shift = inputs[-1]
    assert torch.equal(fast(x, more, shift=shift)["y"], model(x, more, shift=shift)["y"])


def test_what_tells_two_graphs_apart(recorder: Recorder) -> None:
    fast = Graphed(Nested().eval().double())
    x, shift, more = torch.randn(4, 4).double(), torch.zeros(3).double(), {"a": torch.ones(1), "b": [torch.ones(1)]}
    calls: list[Callable[[], Any]] = [
        lambda: fast(x, more, shift=shift),
        lambda: fast(x[:2], more, shift=shift),
        lambda: fast(x.t(), more, shift=shift),
        lambda: fast(x, more, 2.0, shift=shift),
        lambda: fast(x, more, 2, shift=shift),
        lambda: fast(x, more, scale=2.0, shift=shift),
        lambda: fast(x, {"a": torch.ones(1), "b": [torch.ones(1).half()]}, shift=shift),
    ]
    for count, call in enumerate(calls, start=1):
        call(), call(), call()
        assert recorder.captures == count


def test_at_most_eight_graphs_and_the_least_used_goes(recorder: Recorder) -> None:
    fast = Graphed(nn.Linear(4, 3).eval())
    for rows in range(1, CAPACITY + 1):
        called(fast, torch.randn(rows, 4))
    called(fast, torch.randn(1, 4))
    assert recorder.captures == CAPACITY == len(fast._cache.graphs)
    called(fast, torch.randn(99, 4), times=31)
    assert recorder.captures == CAPACITY  # a ninth shape has to come often
    fast(torch.randn(99, 4))
    assert recorder.captures == CAPACITY + 1 and len(fast._cache.graphs) == CAPACITY
    shapes = [captured.inputs[0].shape[0] for captured in fast._cache.graphs.values()]
    assert shapes == [3, 4, 5, 6, 7, 8, 1, 99]


def test_the_model_itself_runs_where_a_graph_cannot(recorder: Recorder) -> None:
    model = nn.Linear(4, 3).eval()
    fast, x = Graphed(model), torch.randn(2, 4)
    assert called(fast, x.clone().requires_grad_()).requires_grad
    with torch.no_grad():
        called(fast, x.clone().requires_grad_())
    assert recorder.captures == 1  # nobody asks for gradients
    called(fast.train(), torch.randn(3, 4))
    fast.eval()
    recorder.capturing = True
    called(fast, torch.randn(4, 4))
    recorder.capturing = False
    assert recorder.captures == 1
    compiled = torch.compile(fast, backend="eager", fullgraph=True)
    assert torch.equal(called(compiled, x), model(x)) and recorder.captures == 1


def test_an_input_in_another_layout_or_class(recorder: Recorder) -> None:
    fast = Graphed(nn.Identity().eval())
    called(fast, torch.eye(3).to_sparse())
    called(fast, nn.UninitializedParameter())
    called(fast, object())
    assert recorder.captures == 0
    expanded = torch.randn(1, 3).expand(2, 3)
    assert torch.equal(called(fast, expanded), expanded) and recorder.captures == 1


class _Held:
    def __init__(self, x: Tensor) -> None:
        self.x = x


class _Returns(nn.Module):
    def forward(self, x: Tensor) -> _Held:
        return _Held(x * 2)


class _Changes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.add_(1)


def test_a_failed_capture_is_told_and_not_tried_again(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def failing(run: Callable[[], object], device: torch.device) -> Any:
        tried.append(1)
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(recorder, "capture", failing)
    fast, x = Graphed(nn.ReLU().eval()), torch.randn(3)
    assert torch.equal(called(fast, x, times=5), x.relu()) and len(tried) == 1
    assert fast.refused == ["RuntimeError: operation not permitted when stream is capturing"]


@pytest.mark.parametrize("model, reason", [(_Returns(), "a _Held"), (_Changes(), "changes its inputs")])
def test_models_that_no_graph_can_stand_for(recorder: Recorder, model: nn.Module, reason: str) -> None:
    fast, x = Graphed(model.eval()), torch.zeros(2)
    result = called(fast, x)
    assert reason in fast.refused[0] and recorder.replays == 0
    assert torch.equal(result.x, x * 2) if isinstance(result, _Held) else torch.equal(x, torch.full((2,), 3.0))


def test_graphs_go_with_the_weights_and_stay_out_of_copies(recorder: Recorder) -> None:
    fast, x = Graphed(nn.Linear(4, 3).eval()), torch.randn(2, 4)
    called(fast, x)
    for made in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert not made._cache.graphs and len(fast._cache.graphs) == 1
        assert torch.equal(called(made, x), fast(x))
        with torch.no_grad():
            made.model.bias.add_(1)
        assert torch.equal(made(x), made.model(x)) and not torch.equal(made(x), fast(x))
    state = {name: torch.zeros_like(t) for name, t in fast.state_dict().items()}
    fast.load_state_dict(state, assign=True)
    assert not fast._cache.graphs and not called(fast, x).any()
    fast.double()
    assert not fast._cache.graphs and called(fast, x.double()).dtype == torch.float64


def test_inference_mode_and_later_calls_outside_of_it(recorder: Recorder) -> None:
    model = nn.Linear(4, 3).eval()
    fast, x = Graphed(model), torch.randn(2, 4)
    with torch.inference_mode():
        given = torch.randn(2, 4)
        inside = called(fast, given)
        assert torch.equal(inside, model(given))
    assert recorder.captures == 1 and torch.equal(fast(x), model(x))
    assert recorder.captures == 1


def test_threads_take_turns(recorder: Recorder) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)).eval()
    fast = Graphed(model)
    wrong = []

    def work(seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        for step in range(30):
            x = torch.randn(1 + step % 3, 64, generator=g)
            if not torch.equal(fast(x), model(x).detach()):
                wrong.append((seed, step))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and recorder.captures == 3 and recorder.replays > 100


def test_only_devices_with_graphs_get_them(recorder: Recorder) -> None:
    model = nn.Linear(4, 3)
    assert graphed.graphed(model, torch.device("meta")) is model
    assert isinstance(graphed.graphed(model, torch.device("cpu")), Graphed)
