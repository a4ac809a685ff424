"""leave_out: what is taken fits the limit and saves most; what it says adds up."""

from __future__ import annotations

import math

import pytest
from torch import nn

import torchaccel as ta
from torchaccel.workflow.layer_table import FIGURES


def table(accuracy: float | None = None, **layers: tuple[float | None, float, float, float]) -> ta.Sensitivity:
    """A table of one form: name -> (move, drop, dense_ms, form_ms); without a move the layer has no such form."""
    rows = []
    for name, (move, drop, dense_ms, form_ms) in layers.items():
        row = {"name": name, "form": "int8 static"} | dict.fromkeys((*FIGURES, "reason"))
        if move is not None:
            row |= {"move": move, "dense_ms": dense_ms, "form_ms": form_ms, "speedup": dense_ms / form_ms}
            row |= {"drop": None if accuracy is None else drop}
        rows.append(row)
    return ta.Sensitivity(rows, {"forms": ["int8 static"], "accuracy": accuracy})


LAYERS = {
    "costly": (0.3, 0.02, 1.0, 0.9),
    "cheap": (0.3, 0.01, 4.0, 1.0),
    "small": (0.1, -0.01, 1.0, 0.8),
    "slower": (0.04, 0.0, 1.0, 2.0),
    "none": (None, 0.0, 0.0, 0.0),
}


@pytest.mark.parametrize(
    ("limit", "taken"),
    [
        (0.0, []),
        (0.05, ["slower"]),
        (0.11, ["small", "slower"]),
        (0.302, ["cheap"]),  # it uses up more, and saves far more
        (0.317, ["cheap", "small"]),
        (0.33, ["cheap", "small", "slower"]),  # a chain may hold what is slower by itself
        (0.5, ["costly", "cheap", "small", "slower"]),
    ],
)
def test_moves_add_up_by_their_squares(limit: float, taken: list[str]) -> None:
    proposal = table(**LAYERS).leave_out(max_move=limit)
    assert proposal.taken == taken
    assert proposal.left_out == [name for name in LAYERS if name not in taken]
    assert (
        proposal.move == pytest.approx(math.sqrt(sum(LAYERS[name][0] ** 2 for name in taken)))
        and proposal.move <= limit
    )
    assert proposal.drop is None and (proposal.dense_ms, proposal.all_ms) == pytest.approx((7.0, 3.7))
    saved = sum(max(LAYERS[name][2] - LAYERS[name][3], 0) for name in taken)
    assert proposal.ms == pytest.approx(7.0 - saved)
    assert [name for name in LAYERS if proposal.filter_fn(nn.Identity(), name)] == taken


def test_drops_add_up_and_gains_make_up_for_none() -> None:
    found = table(0.9, **LAYERS)
    assert found.leave_out(max_drop=0.0).taken == ["small", "slower"]
    assert found.leave_out(max_drop=0.01).taken == ["cheap", "small", "slower"]
    assert found.leave_out(max_drop=0.03).drop == pytest.approx(0.03)
    both = found.leave_out(max_drop=0.01, max_move=0.2)
    assert both.taken == ["small", "slower"] and both.drop == 0.0
    assert "2 of 5 layers changed" in both.summary() and "left out   costly, cheap, none" in both.summary()


def test_what_is_left_out_may_get_another_form() -> None:
    int8 = table(a=(0.03, 0.0, 4.0, 2.0), b=(0.04, 0.0, 4.0, 2.0), only=(0.0, 0.0, 1.0, 0.5)).layers
    pruned = table(a=(0.3, 0.0, 4.0, 1.0), b=(0.5, 0.0, 4.0, 1.0), only=(None, 0.0, 0.0, 0.0)).layers
    rows = [*int8, *(row | {"form": "1x4:0.9 int8 static"} for row in pruned)]
    found = ta.Sensitivity(rows, {"forms": ["int8 static", "1x4:0.9 int8 static"], "accuracy": None})
    proposal = found.leave_out(max_move=0.4, instead="int8 static")
    assert (proposal.taken, proposal.left_out) == (["a"], ["b", "only"])
    assert proposal.move == pytest.approx(math.hypot(0.3, 0.04))
    assert (proposal.dense_ms, proposal.all_ms, proposal.ms) == pytest.approx((9.0, 2.5, 3.5))
    assert found.leave_out(max_move=0.4).ms == pytest.approx(5.0)  # of 8: what was never pruned has no time here


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "neither max_move nor max_drop is given"),
        ({"max_move": -1}, "max_move: given -1, accepted is a number from 0 to inf"),
        ({"max_move": float("nan")}, "max_move: given nan"),
        ({"max_drop": 0.1}, "max_drop: given for a table made without evaluate"),
        ({"max_move": 1, "instead": "dense"}, "instead: given 'dense', accepted are 'int8 static'"),
        ({"max_move": 1, "form": "int4"}, "form: given 'int4', accepted are 'int8 static'"),
    ],
)
def test_bad_input_is_named(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table(**LAYERS).leave_out(**given)
