"""Which forms of a layer are timed on which device, and why the others are not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchaccel.compress import Int8Dynamic, patterns, stored_pattern
from torchaccel.graph.choose import kind
from torchaccel.graph.prepare import prepare
from torchaccel.ops import _library, _tiles
from torchaccel.workflow.candidates import candidates

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SIZES = {"2:4": 0.5, "tile+2:4": 0.75}


def pruned(pattern: str | None, dtype: torch.dtype = torch.float32, groups: int = 1) -> nn.Sequential:
    """A convolution, its zeros in this pattern."""
    torch.manual_seed(0)
    conv = nn.Conv2d(256, 256, 3, padding=1, groups=groups).to(dtype)
    if pattern is not None:
        mask = torch.ones_like(conv.weight, dtype=torch.bool)
        if pattern in SIZES:
            mask &= patterns.two_of_four(conv.weight)
        if pattern != "2:4":
            kept = patterns.largest(patterns.scores(conv.weight, pattern), 0.5)
            mask &= patterns.expand(kept, pattern, conv.weight.shape)
        with torch.no_grad():
            conv.weight *= mask
    return nn.Sequential(conv)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The CPU poses as a GPU with all kernels when layers are packed."""
    monkeypatch.setattr(_tiles, "wanted", lambda op, device: True)
    monkeypatch.setattr(_library, "_capability", lambda device: (9, 0))
    monkeypatch.setattr("torchaccel.nn._packed.has_kernel", lambda op, device: True)
    return CUDA


def forms(model: nn.Module, device: torch.device, int8: Int8Dynamic | None) -> tuple[list[str], dict[str, str]]:
    """The forms of the only layer in words, and why there is none."""
    x = torch.randn(1, 256, 4, 4, dtype=next(model.parameters()).dtype)
    found = candidates(prepare(model, (x,)), device, int8)
    return [kind(module) for module in found.alternatives.get("0", [])], dict(found.kept)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (None, ["int8"]),
        ("unstructured", ["int8"]),
        ("1x4", ["int8"]),
        ("tile", ["int8 tile sparse", "int8"]),
        ("2:4", ["int8 2:4 sparse", "int8"]),
        ("tile+2:4", ["int8 tile+2:4 sparse", "int8 2:4 sparse", "int8"]),
    ],
)
def test_int8_forms_on_a_gpu(pattern: str | None, expected: list[str], gpu: torch.device) -> None:
    assert forms(pruned(pattern), gpu, Int8Dynamic()) == (expected, {})


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("unstructured", ["int8"]),
        ("16x1", ["int8"]),
        ("1x4", ["int8 1x4 sparse", "int8"]),
        ("tile", ["int8 4x4 sparse", "int8"]),
        ("tile+2:4", ["int8 4x4 sparse", "int8"]),
        ("2:4", ["int8"]),
    ],
)
def test_int8_forms_on_a_cpu(pattern: str, expected: list[str]) -> None:
    assert forms(pruned(pattern), CPU, Int8Dynamic()) == (expected, {})


def test_float_forms_on_a_gpu(gpu: torch.device) -> None:
    half = torch.bfloat16
    assert forms(pruned("tile", half), gpu, None)[0] == ["float tile sparse"]
    assert forms(pruned("tile+2:4", half), gpu, None)[0] == ["float tile+2:4 sparse"]
    assert forms(pruned("2:4", half), gpu, None)[0] == ["float 2:4 sparse"]
    for model, says in (
        (pruned("4x4", half), "its zeros leave no tile of 64 x 64 empty and are not 2:4"),
        (pruned("tile"), "the CUDA kernel takes torch.float16 and torch.bfloat16, not torch.float32"),
        (pruned(None, half), "not pruned, not quantized"),
    ):
        found, kept = forms(model, gpu, None)
        assert not found and kept["0"].startswith(f"kept dense: {says}")


def test_groups_are_left_to_the_dense_layer_on_a_gpu(gpu: torch.device) -> None:
    found, kept = forms(pruned(None, groups=4), gpu, Int8Dynamic())
    assert not found and kept == {"0": "kept dense: the CUDA kernel takes one group, not 4"}
    assert forms(pruned(None, groups=4), CPU, Int8Dynamic())[0] == ["int8"]


def test_blocks_that_each_device_stores() -> None:
    conv, grouped, linear = nn.Conv2d(64, 64, 1), nn.Conv2d(64, 64, 1, groups=2), nn.Linear(64, 64)
    assert stored_pattern(conv, "tile", CUDA) == "tile" and stored_pattern(conv, "tile", CPU) == "4x4"
    for module in (grouped, linear):
        assert stored_pattern(module, "tile", CUDA) is None
