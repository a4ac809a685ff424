"""The accuracy gate: the most sensitive layers go back to dense until `evaluate` is satisfied."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from torchaccel import measure
from torchaccel.graph.chain import single
from torchaccel.graph.choose import Choice
from torchaccel.graph.connect import assemble
from torchaccel.workflow.forms import Form
from torchaccel.workflow.inputs import Evaluate, evaluated
from torchaccel.workflow.progress import Progress
from torchaccel.workflow.running import running


def moved(reference: nn.Module, model: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """How far the outputs of two models are apart on `inputs`, relative to their size.

    Equivalent to `(y - y_reference).norm() / y_reference.norm()`.
    """
    return apart(outputs_of(reference, inputs), outputs_of(model, inputs))


def apart(expected: Tensor, given: Tensor) -> float:
    """How far two outputs are apart, relative to the size of the first."""
    return float((given - expected).norm() / expected.norm().clamp(min=1e-12))


def outputs_of(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """All that a model returns on `inputs` as one row of float32; integers only where there is nothing else."""
    with measure.inference():
        leaves = [y for y in torch.utils._pytree.tree_leaves(model(*inputs)) if isinstance(y, Tensor)]
    floats = [y for y in leaves if y.is_floating_point()] or leaves
    return torch.cat([y.flatten().to(torch.float32) for y in floats]) if floats else torch.zeros(1)


def hold_accuracy(
    dense: nn.Module,
    winners: Mapping[str, nn.Module],
    chained: Collection[str],
    choices: list[Choice],
    inputs: tuple[Tensor, ...],
    evaluate: Evaluate,
    at_least: float,
    progress: Progress,
) -> tuple[nn.Module, list[Choice], float, list[str]]:
    """Put 1, 2, 4, ... of the most sensitive layers back until `evaluate` reaches `at_least`, or none is left.

    Returns:
        The model, the choices as they are now, what `evaluate` gave last, and notes for the report.
    """
    fast = running(assemble(dense, winners, chained), inputs)
    with progress.step("checking accuracy", 1) as tick:
        value = evaluated(evaluate, fast, "optimized")
        tick()
    if value >= at_least or not winners:
        return fast, choices, value, []
    # How sensitive the model is to each layer: that layer alone exchanged.
    shifts = {name: moved(dense, assemble(dense, {name: module}), inputs) for name, module in winners.items()}
    order = sorted(winners, key=lambda name: shifts[name], reverse=True)
    alone = single(assemble(dense, winners), chained)
    back, group = 0, 1
    with progress.step("putting layers back", len(order)) as tick:
        while value < at_least and back < len(order):
            for _ in range(min(group, len(order) - back)):
                tick()
            back, group = min(back + group, len(order)), group * 2
            kept = {name: winners[name] for name in winners if name not in order[:back]}
            chains = set(chained).difference(order[:back])
            # Where a chain falls apart, what is left alone was not timed so.
            chains -= single(assemble(dense, kept), chains) - alone
            fast = running(assemble(dense, kept, chains), inputs)
            value = evaluated(evaluate, fast, "optimized")
    restored = set(order[:back])
    choices = [
        replace(
            choice, chosen="dense float", speedup=1.0, chosen_ms=choice.dense_ms,
            reason=f"put back for accuracy: {choice.chosen} moved the output by {shifts[choice.name]:.1%}",
        )
        if choice.name in restored else choice
        for choice in choices
    ]  # fmt: skip
    return fast, choices, value, [f"{back} of {len(order)} layers were put back to dense for accuracy"]


def too_inexact(form: Form, *, evaluate: Evaluate, at_least: float) -> str | None:
    """Why a dense form that rounds more than the model given may not stand for it, or None."""
    if not form.rounds:
        return None
    value = evaluated(evaluate, form.model, form.name)
    return None if value >= at_least else f"left out: evaluate gave {value:.4f}"
