"""Checks of what a user hands in."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

Evaluate = Callable[[nn.Module], float]


def check_inputs(inputs: object) -> None:
    """`example_inputs` is a tuple of at least one tensor."""
    if not isinstance(inputs, tuple) or not inputs or not all(isinstance(x, Tensor) for x in inputs):
        given = type(inputs).__name__
        if isinstance(inputs, tuple):
            given = f"({', '.join(type(x).__name__ for x in inputs)})"
        raise ValueError(f"example_inputs: given {given}, accepted is a tuple of tensors, such as (x,)")


def check_fraction(name: str, value: float, low: float, high: float) -> None:
    """A finite number within [low, high]."""
    if not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name}: given {value!r}, accepted is a number from {low:g} to {high:g}")


def evaluated(evaluate: Evaluate, model: nn.Module, what: str) -> float:
    """Call the user's `evaluate` on a model in eval mode, without gradients; its result must be a finite number."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            value = evaluate(model)
    except Exception as error:
        raise RuntimeError(f"evaluate raised {type(error).__name__} on the {what} model: {error}") from error
    finally:
        model.train(training)
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"evaluate returned {value!r} for the {what} model, accepted is a number") from None
    if not math.isfinite(number):
        raise ValueError(f"evaluate returned {number} for the {what} model, accepted is a finite number")
    return number
