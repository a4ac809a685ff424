"""The command line: what it prints, to which stream, and how it exits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner, Result

import torchaccel as ta
from tests.report.example import example
from torchaccel.cli import app
from torchaccel.report import Report
from torchaccel.workflow import benchmark as benchmarking
from torchaccel.workflow import optimize as optimizing

FACTORY = "tiny_factory:build"
SHAPE = ["--input", "2x16x8x8"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a module that builds a small model, and prints while doing so."""
    (tmp_path / "tiny_factory.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    print('a model that talks')\n"
        "    return nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 4))\n"
        "def number():\n    return 3\n"
        "def broken():\n    return 1 / 0\n"
        "constant = 5\n"
    )
    (tmp_path / "tiny_broken.py").write_text("import no_such_module_anywhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    sys.modules.pop("tiny_factory", None)
    return tmp_path


@pytest.fixture
def data() -> dict[str, Any]:
    return example()


def run(*words: object) -> Result:
    return CliRunner().invoke(app, list(map(str, words)))


def fails(*words: object) -> str:
    """Run what must fail with exit code 2 and one line without a traceback; return that line."""
    result = run(*words)
    assert result.exit_code == 2, result.output
    assert result.stdout in ("", "a model that talks\n")
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


def test_help_names_all_commands() -> None:
    for result in (run(), run("--help")):
        assert result.exit_code == 0
        for command in ("doctor", "demo", "bench", "optimize", "sensitivity", "infer", "pack", "inspect"):
            assert command in result.stdout
    assert run("--version").stdout == f"torchaccel {ta.__version__}\n"


def test_pack(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / "in" / name).mkdir(parents=True)
        Image.new("RGB", (40, 30), "teal").save(tmp_path / "in" / name / "x.png")
    done = run("pack", tmp_path / "in", tmp_path / "x.pack", "--kind", "raw", "--short-side", 20, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) | {"bytes": 0} == {
        "path": str(tmp_path / "x.pack"),
        "images": 2,
        "bytes": 0,
        "failed": [],
    }
    assert ta.data.Packed(tmp_path / "x.pack").shape == (20, 27)
    assert "'jpg', short_side 256" in fails("pack", tmp_path / "in", tmp_path / "y.pack", "--kind", "jpg")
    (tmp_path / "in/a/x.png").write_bytes(b"text")
    assert "'a/x.png'" in fails("pack", tmp_path / "in", tmp_path / "y.pack")
    told = run("pack", tmp_path / "in", tmp_path / "y.pack", "--skip")
    assert told.exit_code == 1 and "1 images" in told.stdout and "left out a/x.png" in told.stderr


def test_doctor() -> None:
    text = run("doctor")
    assert text.exit_code == 0 and "int8_conv2d" in text.stdout
    found = json.loads(run("doctor", "--json").stdout)
    assert found["versions"]["torch"] == torch.__version__
    assert {serving["op"] for serving in found["ops"]} == set(ta.ops.names())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["bench"], "Missing argument 'MODEL'"),
        (["bench", FACTORY], "Missing option '--input'"),
        (["bench", FACTORY, *SHAPE, "--threads", "0"], "--threads is 0, accepted is at least 1"),
        (["bench", "tiny_factory", *SHAPE], "MODEL is 'tiny_factory', accepted is module:function"),
        (["bench", "no_module:f", *SHAPE], "there is no module 'no_module'"),
        (["bench", "tiny_broken:f", *SHAPE], "there is no module 'no_such_module_anywhere'"),
        (["bench", "tiny_factory:absent", *SHAPE], "has no attribute 'absent'"),
        (["bench", "tiny_factory:constant", *SHAPE], "a int; accepted is a function without arguments"),
        (["bench", "tiny_factory:number", *SHAPE], "returned a int, accepted is a torch.nn.Module"),
        (["bench", "tiny_factory:broken", *SHAPE], "calling it raised ZeroDivisionError: division by zero"),
        (["bench", FACTORY, "--input", "2x-3"], "--input is '2x-3', accepted are sizes above 0 joined by x"),
        (["bench", FACTORY, "--input", "2x0x3"], "accepted are sizes above 0"),
        (["bench", FACTORY, "--input", "2x3:floaty"], "its dtype 'floaty'; accepted are float32"),
        (["bench", FACTORY, "--input", "2x3x8x8"], "--input 2x3x8x8: the model raised RuntimeError"),
        (["bench", FACTORY, *SHAPE, "--device", "tpu"], "--device is 'tpu', accepted are auto, cpu and cuda"),
        (["bench", FACTORY, *SHAPE, "--weights", "absent.safetensors"], "--weights: no file absent.safetensors"),
        (["bench", FACTORY, *SHAPE, "--weights", "tiny_factory.py"], "tiny_factory.py is no safetensors file"),
        (["optimize", FACTORY, *SHAPE], "Missing option '--out'"),
        (["optimize", FACTORY, *SHAPE, "--out", "tiny_factory.py"], "--out is 'tiny_factory.py', which cannot be made"),
        (["optimize", FACTORY, *SHAPE, "--out", "o", "--tensorboard", "tiny_factory.py"], "--tensorboard is 'tiny_f"),
        (["optimize", FACTORY, *SHAPE, "--out", "o", "--sparsity", "1x4"], "'1x4', accepted is pattern:amount"),
        (["optimize", FACTORY, *SHAPE, "--out", "o", "--sparsity", "3x3:0.5"], "pattern is '3x3', accepted are"),
        (["optimize", FACTORY, *SHAPE, "--out", "o", "--sparsity", "1x4:1.5"], "accepted is a number from 0"),
        (["optimize", FACTORY, *SHAPE, "--out", "o", "--int8", "int4"], "'int4', accepted are static, dynamic"),
        (["optimize", FACTORY, *SHAPE, "--out", "o", "--int8", "static"], "'static', which needs --calibration"),
        (["optimize", FACTORY, *SHAPE, "--out", "o", "--min-speedup", "-1"], "min_speedup: given -1.0"),
        (["optimize", FACTORY, *SHAPE, "--out", "o", "--calibration", "x.csv"], "accepted are .npy and .safetensors"),
        (["demo", "--model", "alexnet"], "alexnet"),
        (["inspect", "absent.json"], "FILE is 'absent.json', accepted is an existing checkpoint or report.json"),
        (["inspect", "tiny_factory.py"], "no safetensors file"),
    ],
)  # fmt: skip
def test_bad_usage_is_one_line(words: list[str], message: str) -> None:
    assert message in fails(*words)


def test_weights_must_fit(folder: Path) -> None:
    state = nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 4)).state_dict()
    save_file({name: value for name, value in state.items() if name != "0.bias"}, folder / "less.safetensors")
    assert "it lacks 0.bias" in fails("bench", FACTORY, *SHAPE, "--weights", "less.safetensors")
    save_file(state | {"more": torch.zeros(1)}, folder / "more.safetensors")
    assert "the model lacks more" in fails("bench", FACTORY, *SHAPE, "--weights", "more.safetensors")
    save_file(state | {"3.bias": torch.zeros(5)}, folder / "other.safetensors")
    assert "size mismatch for 3.bias" in fails("bench", FACTORY, *SHAPE, "--weights", "other.safetensors")


def test_calibration_must_fit(folder: Path) -> None:
    np.save(folder / "small.npy", np.zeros((4, 16, 7, 7), np.float32))
    np.save(folder / "objects.npy", np.array([{}]), allow_pickle=True)
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, folder / "two.safetensors")
    given = ["optimize", FACTORY, *SHAPE, "--out", "o", "--calibration"]
    assert "has the shape 4x16x7x7, accepted is samples x 16x8x8" in fails(*given, "small.npy")
    assert "objects.npy is no array of numbers" in fails(*given, "objects.npy")
    assert "holds 2 tensors, accepted is one" in fails(*given, "two.safetensors")
    assert "accepted only with static" in fails(*given, "small.npy", "--int8", "dynamic")


class _Timed:
    """Stands for the benchmark, which would compile the model; records what it was called with."""

    def __init__(self) -> None:
        self.called: list[tuple[nn.Module, tuple[torch.Tensor, ...]]] = []

    def __call__(self, model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> _Timed:
        self.called.append((model, inputs))
        return self

    def to_dict(self) -> dict[str, Any]:
        return {"best": "eager"}

    def summary(self) -> str:
        return "eager  1.000 ms"


def test_bench(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = _Timed()
    monkeypatch.setattr(benchmarking, "benchmark", timed)
    state = nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 4)).state_dict()
    save_file(state, folder / "w.safetensors")
    words = ["bench", FACTORY, *SHAPE, "--weights", "w.safetensors", "--device", "cpu"]
    result = run(*words)
    assert result.exit_code == 0 and result.stdout.endswith("eager  1.000 ms\n")
    model, (x,) = timed.called[0]
    assert not model.training and x.shape == (2, 16, 8, 8) and x.dtype == torch.float32
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    result = run(*words, "--json")
    assert json.loads(result.stdout) == {"best": "eager"}
    assert "a model that talks" in result.stderr


def _optimized(data: dict[str, Any], passed: bool, calls: list[dict[str, Any]]) -> Any:
    def optimize(model: nn.Module, inputs: tuple[torch.Tensor, ...], **settings: Any) -> ta.Result:
        calls.append(settings)
        return ta.Result(model, Report(data), passed)

    return optimize


def test_optimize_writes_and_tells(folder: Path, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(optimizing, "optimize", _optimized(data, True, calls))
    np.save(folder / "real.npy", np.ones((5, 16, 8, 8), np.float32))
    words = ["optimize", FACTORY, *SHAPE, "--out", "made/here", "--sparsity", "2:4:0.5", "--calibration", "real.npy"]
    result = run(*words, "--min-speedup", "1.2")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (folder / "made/here").iterdir()) == [
        "model.safetensors", "report.html", "report.json",
    ]  # fmt: skip
    assert calls[0]["sparsity"] == ta.Sparsity("2:4", 0.5) and calls[0]["int8"] == ta.Int8Static()
    assert calls[0]["min_speedup"] == 1.2
    assert [len(batch) for batch in calls[0]["calibration"]] == [2, 2, 1]
    assert "made/here/report.html" in result.stdout
    assert "accuracy was not checked" in result.stderr and "without fine-tuning" in result.stderr
    printed = json.loads(run(*words, "--json").stdout)
    assert printed["model"] == FACTORY and printed["passed"] is True
    assert printed["files"]["report.json"] == "made/here/report.json"
    assert Report.from_json(folder / "made/here/report.json").speedup == 2.0


def test_optimize_writes_events(folder: Path, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizing, "optimize", _optimized(data, True, []))
    words = ["optimize", FACTORY, *SHAPE, "--out", "o", "--tensorboard", "runs/a", "--json"]
    assert json.loads(run(*words).stdout)["files"]["tensorboard"] == "runs/a"
    assert all(path.name.startswith("events.out") for path in (folder / "runs/a").iterdir())
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert "--tensorboard is given, but TensorBoard is not installed" in fails(*words)


def test_a_failed_gate_exits_with_1(data: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(optimizing, "optimize", _optimized(data, False, calls))
    result = run("optimize", FACTORY, *SHAPE, "--out", "o", "--int8", "none", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["passed"] is False
    assert calls[0]["int8"] is None and calls[0]["sparsity"] is None and calls[0]["calibration"] is None


def test_demo_passes_its_flags_on(data: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from torchaccel.demo import run as demo

    calls: list[dict[str, Any]] = []

    def fake(**settings: Any) -> ta.Result:
        calls.append(settings)
        print("training")
        return ta.Result(nn.Identity(), Report(data), len(calls) == 1)

    monkeypatch.setattr(demo, "demo", fake)
    result = run("demo", "--model", "resnet50", "--quick", "--data", "d", "--out", "o", "--device", "cpu")
    assert result.exit_code == 0 and "2.00x faster" in result.stdout
    assert calls[0] == {"model": "resnet50", "quick": True, "data": Path("d"), "out": Path("o"), "device": "cpu"}
    result = run("demo", "--json")
    assert result.exit_code == 1 and json.loads(result.stdout)["speedup"] == 2.0


def test_inspect_a_checkpoint(folder: Path) -> None:
    model = nn.Sequential(nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.Flatten(), nn.Linear(1152, 4))
    ta.quantize_(model, ta.Int8Dynamic())
    ta.save(model, folder / "m.safetensors")
    found = json.loads(run("inspect", "m.safetensors", "--json").stdout)
    conv, linear = found["layers"]
    assert (conv["name"], conv["kind"], conv["shape"]) == ("0", "int8_conv2d", [32, 16, 3, 3])
    assert (linear["name"], linear["kind"], linear["shape"]) == ("3", "int8_linear", [4, 1152])
    assert linear["size_bytes"] >= 4 * 1152 and 0 <= linear["sparsity"] < 0.1
    assert found["other"]["tensors"] == 5
    assert found["size_bytes"] == (folder / "m.safetensors").stat().st_size
    text = run("inspect", "m.safetensors").stdout
    assert "32x16x3x3" in text and "int8_linear" in text and "2 layers; 5 other tensors" in text


def test_inspect_a_report(folder: Path, data: dict[str, Any]) -> None:
    data["layers"][0]["name"] = "conv1\x1b[31m[red]"
    Report(data).to_json(folder / "r.json")
    text = run("inspect", "r.json").stdout
    assert "2.00x faster" in text and "sparse_int8_conv2d 1x4" in text and "3.00x at N=32" in text
    assert "\x1b" not in text and "[31m[red]" in text
    assert json.loads(run("inspect", "r.json", "--json").stdout) == data
    (folder / "r.json").write_text("{}")
    assert "baseline is missing" in fails("inspect", "r.json")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*args: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(benchmarking, "benchmark", bug)
    result = run("bench", FACTORY, *SHAPE)
    assert isinstance(result.exception, RuntimeError)


def test_the_installed_script() -> None:
    script = "import sys; from torchaccel.cli import main; sys.argv = ['torchaccel', 'bench', 'x']; main()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: Missing option '--input'.\n"
