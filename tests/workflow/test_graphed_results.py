"""What accelerate, optimize and save make of CUDA graphs; torch.cuda is replaced by a recorder on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import torchaccel as ta
from tests.models import SmallNet, settled
from tests.workflow.recorder import Recorder
from torchaccel import measure
from torchaccel.workflow import benchmark, forms, graphed
from torchaccel.workflow.graphed import Graphed

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(5))


@pytest.fixture(autouse=True)
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Graphs are recorded on the CPU, every candidate is taken for faster, and torch.compile is left out."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(forms, "_compiled", lambda model: (_ for _ in ()).throw(RuntimeError("left out")))
    faster = measure.Comparison(2.0, 2.0, 2.0, (2.0,), (1.0,))
    monkeypatch.setattr(measure, "compare", lambda dense, fast, **_: (dense(), fast(), fast(), faster)[3])
    monkeypatch.setattr("torchaccel.workflow.candidates.served", lambda layer, device: None)
    made = Recorder()
    monkeypatch.setattr(graphed, "backend", made)
    return made


def test_an_accelerated_model_replays_and_reloads(recorder: Recorder, tmp_path: Path) -> None:
    model = settled(SmallNet())
    ta.quantize_(model, ta.Int8Dynamic())
    fast = ta.accelerate(model, (X,))
    assert isinstance(fast, Graphed) and not fast.notes and len(fast.choices) == 7
    captures = recorder.captures
    assert captures > 0 and torch.equal(fast(X), fast.model(X)) and recorder.captures == captures
    again = ta.accelerate(fast, (X,))
    assert isinstance(again, Graphed) and not isinstance(again.model, Graphed)
    ta.save(fast, tmp_path / "model.safetensors")
    loaded = ta.load(tmp_path / "model.safetensors", SmallNet)
    assert isinstance(loaded, Graphed) and loaded.state_dict().keys() == fast.state_dict().keys()
    assert all(torch.equal(loaded(X), fast(X)) for _ in range(3))


def test_a_model_that_is_not_captured_says_so(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise RuntimeError("not permitted when stream is capturing")

    monkeypatch.setattr(recorder, "capture", failing)
    fast = ta.accelerate(settled(SmallNet()), (X,))
    assert fast.notes == ["runs without a CUDA graph: RuntimeError: not permitted when stream is capturing"]
    found, failed = forms.dense_forms(settled(SmallNet()), (X,))
    assert {form.name for form in found} == {"eager", "channels_last"} and "torch.compile, frozen" in failed


def _half_forms(model: nn.Module) -> dict:
    return {
        "eager": lambda: model,
        "channels_last, CUDA graphs, float16": lambda: Graphed(forms._channels_last(model, torch.float16)),
        "channels_last, CUDA graphs, bfloat16": lambda: Graphed(forms._channels_last(model, torch.bfloat16)),
    }


def _dtypes(model: nn.Module) -> set[torch.dtype]:
    return {p.dtype for p in model.parameters()}


@pytest.mark.parametrize("accurate", ["float16", "bfloat16", "eager"])
def test_the_accuracy_gate_sees_the_dense_form_that_is_returned(accurate: str, monkeypatch) -> None:
    monkeypatch.setattr(forms, "_cpu_forms", _half_forms)
    speeds = [3.0, 1.0, 2.0, 9.0]  # float16 is the fastest form, then bfloat16
    monkeypatch.setattr(measure, "interleaved_ms", lambda steps, *_: ([step() for step in steps], speeds)[1])
    wanted = torch.float32 if accurate == "eager" else getattr(torch, accurate)
    seen: list[set[torch.dtype]] = []

    def evaluate(model: nn.Module) -> float:
        model(X)
        seen.append(_dtypes(model))
        int8 = any(type(m).__name__.startswith("Int8") for m in model.modules())
        return 1.0 if not int8 and seen[-1] in ({torch.float32}, {wanted}) else 0.5

    result = ta.optimize(settled(SmallNet()), (X,), evaluate=evaluate, max_drop=0.1, min_speedup=100.0)
    assert not result.passed and _dtypes(result.model) == {wanted}
    assert {wanted} in seen
    left_out = {
        row["form"] for row in result.report.data["forms"] if row["note"].startswith("left out: evaluate gave 0.5")
    }
    halves = ["channels_last, CUDA graphs, float16", "channels_last, CUDA graphs, bfloat16"]
    assert left_out == set(halves[: {"float16": 0, "bfloat16": 1, "eager": 2}[accurate]])


def test_forms_on_a_gpu_have_graphs_of_their_own(recorder: Recorder) -> None:
    built = forms._cuda_forms(settled(SmallNet()))
    assert {"channels_last, CUDA graphs", "torch.compile, frozen, CUDA graphs, bfloat16"} <= built.keys()
    form = built["channels_last, CUDA graphs, bfloat16"]()
    first = form(X)
    results: list[Tensor] = [form(X * scale) for scale in (1.0, 2.0, 3.0)]
    assert recorder.captures == 1 and torch.equal(first, results[0]) and not torch.equal(results[0], results[2])
    assert first.dtype == torch.float32


def test_benchmark_asks_for_each_form_in_the_order_of_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "_cpu_forms", _half_forms)
    monkeypatch.setattr(measure, "interleaved_ms", lambda steps, *_: [3.0, 2.0, 1.0])
    asked: list[str] = []
    timed = benchmark.time_forms(settled(SmallNet()), (X,), refuse=lambda form: asked.append(form.name) or "no")
    assert timed.best.name == "eager"
    assert asked == ["channels_last, CUDA graphs, bfloat16", "channels_last, CUDA graphs, float16"]
