"""`torchaccel infer`: the files it writes, and what it refuses before it writes any."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import torchaccel as ta
from tests.test_cli import FACTORY, fails, folder, run

__all__ = ["folder"]  # the fixture

ROOT = Path(__file__).parents[1]


@pytest.fixture
def model(folder: Path) -> torch.nn.Module:
    """The model of model.safetensors in the current folder, which also holds 11 samples in x.npy."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(16, 16, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(576, 4)
    ).eval()
    ta.save(model, "model.safetensors")
    np.save("x.npy", np.random.default_rng(0).standard_normal((11, 16, 8, 8), np.float32))
    return model


def expected(model: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        return torch.cat([model(x) for x in torch.from_numpy(np.load("x.npy")).split(4)]).numpy()


def test_an_array_becomes_an_array_of_outputs_on_workers_that_were_measured(model: torch.nn.Module) -> None:
    words = ["infer", "model.safetensors", FACTORY, "--arrays", "x.npy", "--batch", 4, "--out", "y.npy"]
    told = run(*words, "--json")
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert found["samples"] == 11 and found["out"] == "y.npy"
    assert found["workers"] == found["plan"]["best"]["workers"]
    np.testing.assert_allclose(np.load("y.npy"), expected(model), rtol=1e-5, atol=1e-5)
    told = run(*words, "--workers", 2, "--threads", 1)
    assert told.exit_code == 0 and "y.npy: 11 samples" in told.stdout
    np.testing.assert_allclose(np.load("y.npy"), expected(model), rtol=1e-5, atol=1e-5)


def test_json_stays_json_with_processes_that_print(model: torch.nn.Module) -> None:
    words = ["infer", "model.safetensors", FACTORY, "--arrays", "x.npy", "--batch", "4", "--out", "y.csv"]
    command = [sys.executable, "-c", "from torchaccel.cli import main; main()", *words]
    options = ["--workers", "1", "--processes", "--json"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["processes"] and "a model that talks" in done.stderr
    rows = list(csv.DictReader(open("y.csv")))
    outputs = expected(model)
    assert [int(row["sample"]) for row in rows] == list(range(11))
    assert [int(row["class"]) for row in rows] == outputs.argmax(1).tolist()
    np.testing.assert_allclose([float(row["value"]) for row in rows], outputs.max(1), rtol=1e-4)


def test_a_folder_of_images_becomes_a_table_of_their_classes(folder: Path) -> None:
    (folder / "tiny_images.py").write_text(
        "from torch import nn\n"
        "def build():\n    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))\n"
    )
    mean = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 3)).eval()
    with torch.no_grad():
        mean[2].weight.copy_(torch.eye(3))
        mean[2].bias.zero_()
    ta.save(mean, "images.safetensors")
    (folder / "in").mkdir()
    for name, color in (("a", "red"), ("b", "lime"), ("c", "blue")):
        Image.new("RGB", (40, 30), color).save(folder / "in" / f"{name}.png")
    words = ["infer", "images.safetensors", "tiny_images:build", "--images", "in", "--size", 16, "--workers", 1]
    told = run(*words, "--out", "classes.csv", "--batch", 2)
    assert told.exit_code == 0, told.output
    rows = list(csv.DictReader(open("classes.csv")))
    assert [Path(row["sample"]).name for row in rows] == ["a.png", "b.png", "c.png"]
    assert [row["class"] for row in rows] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--arrays", "x.npy", "--images", "."], "accepted is one of the two"),
        ([], "accepted is one of the two"),
        (["--arrays", "absent.npy"], "'absent.npy', accepted is an .npy file"),
        (["--arrays", "x.npy", "--workers", "many"], "'many', accepted are auto and at least 1"),
        (["--arrays", "x.npy", "--threads", "2"], "--threads is given with --workers auto"),
        (["--arrays", "x.npy", "--batch", "0"], "accepted is at least 1"),
        (["--arrays", "wrong.npy", "--workers", "1"], "MODEL failed on batch 0: RuntimeError"),
        (["--arrays", "x.npy", "--out", "no/y.npy"], "'no/y.npy', accepted is a file in an existing folder"),
        (["--arrays", "scalar.npy"], "accepted are samples first"),
        (["--images", "absent"], "which is not a folder"),
    ],
)
def test_what_is_refused_leaves_the_old_file(model: torch.nn.Module, words: list[str], message: str) -> None:
    np.save("wrong.npy", np.zeros((2, 3, 8, 8), np.float32))
    np.save("scalar.npy", np.float32(1))
    Path("y.npy").write_text("old")
    assert message in fails("infer", "model.safetensors", FACTORY, "--out", "y.npy", *words)
    assert Path("y.npy").read_text() == "old" and not list(Path().glob(".y.npy*"))


def test_a_model_that_fails_while_it_is_measured_is_told_in_a_line(model: torch.nn.Module) -> None:
    np.save("wrong.npy", np.zeros((2, 3, 8, 8), np.float32))
    result = run("infer", "model.safetensors", FACTORY, "--arrays", "wrong.npy", "--out", "y.npy")
    assert (
        result.exit_code == 2 and "error: MODEL failed on the first batch: RuntimeError: Given groups" in result.stderr
    )


def test_outputs_that_are_not_one_row_for_each_sample_are_refused(folder: Path) -> None:
    (folder / "tiny_halves.py").write_text(
        "from torch import nn\n"
        "class Half(nn.Linear):\n    def forward(self, x):\n        return super().forward(x)[::2]\n"
        "def build():\n    return Half(2, 3).eval()\n"
    )
    sys.modules.pop("tiny_halves", None)
    sys.path.insert(0, str(folder))
    ta.save(__import__("tiny_halves").build(), "half.safetensors")
    np.save("x.npy", np.zeros((8, 2)))  # float64, NumPy's default
    for out in ("y.npy", "y.csv"):
        words = ["infer", "half.safetensors", "tiny_halves:build", "--arrays", "x.npy", "--workers", 1, "--out", out]
        assert "the model returns 4 rows for a batch of 8, accepted is one for each sample" in fails(*words)
        assert not (folder / out).exists()


def test_other_files_and_outputs_are_refused(model: torch.nn.Module) -> None:
    words = ["infer", "model.safetensors", FACTORY, "--arrays", "x.npy", "--workers", 1]
    assert "'y.txt', accepted are .npy and .csv" in fails(*words, "--out", "y.txt")
    assert "constant" in fails("infer", "model.safetensors", "tiny_factory:constant", *words[3:], "--out", "y.npy")
    assert "no file absent" in fails("infer", "absent", *words[2:], "--out", "y.npy")
