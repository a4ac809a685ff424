"""`torchaccel sensitivity`: what it prints, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.test_cli import FACTORY, SHAPE, fails, folder, run

__all__ = ["folder"]  # the fixture


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_table_for_each_form(folder: Path) -> None:
    np.save(folder / "real.npy", np.random.default_rng(0).standard_normal((5, 16, 8, 8), np.float32))
    words = ["sensitivity", FACTORY, *SHAPE, "--device", "cpu", "--calibration", "real.npy"]
    words += ["--sparsity", "1x4:0.5", "--sparsity", "unstructured:0.9"]
    told = run(*words)
    assert told.exit_code == 0, told.output
    for form in ("int8 static", "1x4:0.5 int8 static", "unstructured:0.9 int8 static"):
        assert f"\n{form}, in one layer at a time\n" in told.stdout
    assert "accuracy was not measured" in told.stderr and "noise" not in told.stderr
    result = run(*words, "--int8", "dynamic", "--int8", "weight-only", "--json")
    found = json.loads(result.stdout)
    assert "a model that talks" in result.stderr
    assert found["forms"] == [
        "int8 dynamic",
        "int8 weight-only",
        *(f"{amount} int8 {kind}" for kind in ("dynamic", "weight-only") for amount in ("1x4:0.5", "unstructured:0.9")),
    ]
    assert len(found["layers"]) == 2 * len(found["forms"]) and found["model"] == "Sequential"


def test_floats_alone_on_noise() -> None:
    result = run("sensitivity", FACTORY, *SHAPE, "--device", "cpu", "--sparsity", "1x4:0.5", "--int8", "none", "--json")
    assert json.loads(result.stdout)["forms"] == ["1x4:0.5"]
    assert "compared on noise" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--int8", "static"], "'static', which needs --calibration"),
        (["--int8", "int4"], "'int4', accepted are static, dynamic"),
        (["--int8", "none"], "neither sparsity nor int8 is given"),
        (["--int8", "none", "--int8", "dynamic"], "--int8 is given as none, dynamic, accepted is none by itself"),
        (["--sparsity", "1x4"], "'1x4', accepted is pattern:amount"),
        (["--sparsity", "1x4:0.5", "--sparsity", "1x4:0.5"], "'1x4:0.5 int8 dynamic' is given twice"),
        (["--calibration", "absent.npy"], "--calibration: no file absent.npy"),
        (["--threads", "0"], "--threads is 0, accepted is at least 1"),
        (["--input", "2x3"], "the model raised"),
    ],
)
def test_bad_usage_is_one_line(words: list[str], message: str) -> None:
    assert message in fails("sensitivity", FACTORY, *SHAPE, "--device", "cpu", *words)
