"""conv_chain: bad input is named, by kernel and reference; memory that is too small or taken does not matter.

That its numbers are right is tested in tests/nn/test_conv_chain.py and test_conv_chain_float.py, where plans are made.
"""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from tests.nn import float_bodies
from tests.nn.chain_bodies import Layer, Recipe, images, make
from torchaccel import ops
from torchaccel.nn import _chain_plan
from torchaccel.ops import _library
from torchaccel.ops._chain_step import SCRATCH, STEP_INTS, Step
from torchaccel.ops.conv_chain import _fake, _reference, supports

RECIPE = Recipe((Layer(channels=8, kernel=(3, 3)), Layer(channels=6)), (8, 6, 7), torch.uint8)
FLOATS = Recipe((Layer(channels=8, kernel=(3, 3), pattern="1x4"), Layer(pattern="unstructured")), (8, 6, 7))
X = images(RECIPE, 2)
BODY = make(RECIPE)


def arguments(recipe: Recipe = RECIPE, **changed: object) -> dict:
    body = BODY if recipe is RECIPE else float_bodies.make(recipe)
    plan = _chain_plan.build(body, recipe.size, recipe.dtype, 1, {})
    names = "values", "indices", "floats", "arena", "arena_bytes", "late_steps", "lanes", "out_size", "out_dtype"
    return {"x": images(recipe, 2), "plan": plan.steps} | {name: getattr(plan, name) for name in names} | changed


def refused(given: dict, says: str, route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if route == "reference":
        monkeypatch.setattr(_library, "_native_checks", lambda op, device_type: False)
    with pytest.raises(ValueError, match=f"conv_chain: .*{says}"):
        ops.conv_chain(**given)


@pytest.mark.parametrize("route", ["kernel", "reference"])
@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"x": X.to(torch.int32)}, "x is torch.int32"),
        ({"x": X[0]}, r"x has shape \(8, 6, 7\), accepted is \[N, C, H, W\]"),
        ({"x": X[:, :, :5]}, r"x has shape \(2, 8, 5, 7\), the plan accepts \[N, 8, 6, 7\]"),
        ({"x": torch.ones(2, 12, 6, 7, dtype=torch.uint8)}, r"the plan accepts \[N, 8, 6, 7\]"),
        ({"x": torch.ones(2, 6, 6, 7, dtype=torch.uint8)}, "has 6 channels, accepted is a multiple of 4"),
        ({"plan": torch.zeros(3, STEP_INTS - 1, dtype=torch.int64)}, "plan has shape"),
        ({"plan": torch.zeros(STEP_INTS, dtype=torch.int64)}, "plan has shape"),
        ({"plan": torch.zeros(3, STEP_INTS)}, "plan is torch.float32"),
        ({"values": torch.zeros(3, dtype=torch.float16)}, "values is torch.float16"),
        ({"values": torch.zeros(3, 1, dtype=torch.int8)}, r"values has shape \(3, 1\)"),
        ({"indices": torch.zeros(3)}, "indices is torch.float32"),
        ({"floats": torch.zeros(3, dtype=torch.int8)}, "floats is torch.int8"),
        ({"arena": torch.zeros(3)}, "arena is torch.float32"),
        ({"late_steps": -1}, "late_steps and lanes are -1 and 1, accepted are 0 to 6 and at least 1"),
        ({"late_steps": 99}, "late_steps and lanes are 99 and 1"),
        ({"lanes": 0}, "late_steps and lanes are 6 and 0"),
        ({"out_size": (6, 4)}, r"out_size is \(6, 4\), the plan gives \(6, 4, 5\)"),
        ({"out_size": (6, 5, 5)}, r"out_size is \(6, 5, 5\)"),
        ({"out_dtype": torch.float64}, "out_dtype is torch.float64"),
    ],
)
def test_bad_input(changed: dict, says: str, route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(arguments(**changed), says, route, monkeypatch)


@pytest.mark.parametrize("route", ["kernel", "reference"])
@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"x": X}, "x is torch.uint8, accepted are torch.float32"),
        ({"out_dtype": torch.uint8}, "out_dtype is torch.uint8, accepted are torch.float32"),
        ({"out_size": (8, 4, 4)}, r"out_size is \(8, 4, 4\), the plan gives \(8, 4, 5\)"),
        ({"x": torch.ones(2, 7, 6, 7)}, r"x has shape \(2, 7, 6, 7\), the plan accepts \[N, 8, 6, 7\]"),
    ],
)
def test_bad_input_of_float_chains(changed: dict, says: str, route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(arguments(FLOATS, **changed), says, route, monkeypatch)


@pytest.mark.parametrize("recipe", [RECIPE, FLOATS], ids=["int8", "float32"])
def test_memory_that_is_too_small_or_taken(recipe: Recipe) -> None:
    given = arguments(recipe)
    expected = ops.conv_chain(**given)
    size = torch.get_num_threads() * (given["arena_bytes"] + SCRATCH) + 128
    for arena in (torch.zeros(size, dtype=torch.uint8), torch.zeros(size + 13, dtype=torch.uint8)[13:]):
        for _ in range(2):
            assert torch.equal(ops.conv_chain(**given | {"arena": arena}), expected)
    taken = torch.ones(size, dtype=torch.uint8)
    assert torch.equal(ops.conv_chain(**given | {"arena": taken}), expected)
    assert int((taken != 1).sum()) < 4, "another call works in this memory, behind the word that says so"
    if recipe is RECIPE:
        with torch.no_grad():
            assert torch.equal(expected, BODY(X))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_floats_keep_the_layout_of_x(layout: torch.memory_format) -> None:
    given = arguments(FLOATS)
    given["x"] = given["x"].to(memory_format=layout)
    y = ops.conv_chain(**given)
    assert y.is_contiguous(memory_format=layout)
    for made in (_reference(**given), _fake(**given)):
        assert made.stride() == y.stride()


def test_a_step_is_as_long_as_its_fields() -> None:
    assert len(fields(Step)) == STEP_INTS == arguments()["plan"].shape[1]


def test_where_it_runs() -> None:
    assert supports(torch.device("cpu")) is None
    assert "cuda" in str(supports(torch.device("cuda")))
    x = images(Recipe((), (8, 6, 7)), 2)
    assert torch.equal(ops.conv_chain(**arguments(x=x[:0].to(torch.uint8))), torch.empty(0, 6, 4, 5, dtype=torch.uint8))
