"""`torchaccel find-lr` and `find-batch-size`: what they print, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import torchaccel as ta
from tests.test_cli import FACTORY, SHAPE, fails, folder, run

__all__ = ["folder"]  # the fixture

SETUP = """
import torch
from tiny_factory import build

def setup():
    torch.manual_seed(0)
    model = build()
    data = [(torch.randn(8, 16, 8, 8), torch.randint(4, (8,))) for _ in range(4)]
    loss = lambda model, batch: torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
    return model, torch.optim.SGD(model.parameters(), 0.01), data, loss

def flat():
    model, optimizer, data, _ = setup()
    return model, optimizer, data, lambda model, batch: 0 * model(batch[0]).sum()

def three():
    return setup()[:3]
"""


@pytest.fixture(autouse=True)
def setup(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "tiny_setup.py").write_text(SETUP)
    monkeypatch.delitem(__import__("sys").modules, "tiny_setup", raising=False)


def test_find_lr(folder: Path) -> None:
    told = run("find-lr", "tiny_setup:setup", "--plot", "lr.svg")
    assert told.exit_code == 0, told.output
    assert "suggestion  3.3: a third of 10" in told.stdout and "<svg" in (folder / "lr.svg").read_text()
    result = run("find-lr", "tiny_setup:setup", "--steps", 60, "--min-lr", 1e-6, "--max-lr", 1, "--json")
    found = json.loads(result.stdout)
    assert found["rates"][0] == 1e-6 and len(found["rates"]) == 60 and 1e-4 < found["suggestion"] < 1
    assert "a model that talks" in result.stderr


def test_find_lr_fails_where_nothing_is_found() -> None:
    result = run("find-lr", "tiny_setup:flat")
    assert result.exit_code == 1 and "suggestion  none: the loss did not fall" in result.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tiny_setup:three"], "returned a tuple of 3, accepted is (model, optimizer, batches, loss)"),
        (["tiny_factory:number"], "returned a int, accepted is (model, optimizer, batches, loss)"),
        (["tiny_setup"], "SETUP is 'tiny_setup', accepted is module:function"),
        (["tiny_setup:setup", "--steps", 3], "steps is 3, accepted is a whole number of at least 20"),
        (["tiny_setup:setup", "--plot", "lr.doc"], "--plot is 'lr.doc', accepted are files ending in "),
        (["tiny_setup:setup", "--plot", "no/lr.png"], "accepted is a file in an existing folder"),
    ],
)
def test_find_lr_refuses(words: list[str], message: str) -> None:
    assert message in fails("find-lr", *words)


def test_find_batch_size(folder: Path) -> None:
    words = ["find-batch-size", FACTORY, *SHAPE, "--device", "cpu", "--max-batch-size", 4]
    told = run(*words)
    assert told.exit_code == 0, told.output
    assert "inference on " in told.stdout and "<- suggestion" in told.stdout
    model = ta.accelerate(__import__("tiny_factory").build().eval(), (torch.randn(2, 16, 8, 8),))
    ta.save(model, folder / "fast.safetensors")
    found = json.loads(run(*words, "--checkpoint", "fast.safetensors", "--json").stdout)
    assert [row["batch_size"] for row in found["rows"]] == [1, 2, 3, 4] and not found["training"]
    late = run(*words, "--max-latency", 1e-6)
    assert late.exit_code == 1 and "suggestion  none: one sample takes" in late.stdout


def test_find_batch_size_refuses() -> None:
    words = ["find-batch-size", FACTORY, *SHAPE]
    assert "accepted is one of them" in fails(*words, "--weights", "a", "--checkpoint", "b")
    assert "max_latency_ms is -1.0, accepted is above 0" in fails(*words, "--max-latency", -1)
    assert "no file" in fails(*words, "--checkpoint", "none.safetensors").lower()
