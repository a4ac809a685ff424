"""The pruning steps of `optimize`, with the user's fine-tuning after each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor, nn

from torchaccel.compress import Removed, Sparsity, finalize_masks_, remove_channels_, sparsify_
from torchaccel.workflow.inputs import Evaluate, evaluated
from torchaccel.workflow.progress import Progress


@dataclass(frozen=True)
class AccuracyGate:
    """What the user's `evaluate` gave for the model as it came, and the least that it may give."""

    evaluate: Evaluate
    before: float
    at_least: float


@dataclass(frozen=True)
class Pruned:
    """A pruned model without masks, what it lost channels of, and what there is to say about it."""

    model: nn.Module
    removed: Removed | None
    notes: list[str]


def prune(
    model: nn.Module,
    sparsity: Sparsity,
    inputs: tuple[Tensor, ...],
    filter_fn: Callable[[nn.Module, str], bool] | None,
    finetune: Callable[[nn.Module, int], None] | None,
    gate: AccuracyGate | None,
    progress: Progress,
) -> Pruned:
    """Prune a model in place, step by step.

    Masked weights that cost too much accuracy come back when their layers are put back; removed channels do not. So
    where the last step of removal is not accurate enough, the last one that was is returned, or the model as it came.
    """
    removing = sparsity.pattern == "channel"
    steps = sparsity.steps or (sparsity.amount,)
    removed: Removed | None = None
    held = copy.deepcopy(model) if removing and gate is not None else None
    held_removed, held_amount, values = removed, 0.0, []
    with progress.step("pruning", len(steps)) as tick:
        for step, amount in enumerate(steps):
            if removing:
                now = remove_channels_(model, inputs, amount, filter_fn)
                removed = now if removed is None else removed.then(now)
            else:
                sparsify_(model, replace(sparsity, amount=amount, steps=None), filter_fn)
            if finetune is not None:
                try:
                    finetune(model, step)
                except Exception as error:
                    raise RuntimeError(f"finetune raised {type(error).__name__} in step {step}: {error}") from error
            if gate is not None and (removing or amount == steps[-1]):
                values.append(evaluated(gate.evaluate, model, "pruned"))
                if removing and values[-1] >= gate.at_least:
                    held = model if amount == steps[-1] else copy.deepcopy(model)
                    held_removed, held_amount = removed, amount
            tick()
    notes = [f"after pruning, in float: {values[-1]:.4f}"] if values else []
    if removing and gate is not None and held is not None and held is not model:
        tried = ", ".join(f"{value:.4f} at {amount:.0%}" for amount, value in zip(steps, values, strict=True))
        back = f"the model as it is with {held_amount:.0%}" if held_amount else "the model with all its channels"
        notes = [f"evaluate gave {tried} of the channels removed, asked was {gate.at_least:.4f}: back to {back}"]
        model, removed = held, held_removed
    if removing:
        notes.append(_told(removed))
    return Pruned(finalize_masks_(model.eval()), removed, notes)


def _told(removed: Removed | None) -> str:
    if removed is None:
        return "no channels were removed"
    if not removed.remaining:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(removed.kept.items())[:3])
        return f"no channels could be removed ({reasons})"
    parameters = " -> ".join(f"{n / 1e6:.2f}" for n in removed.parameters)
    macs = " -> ".join(f"{n / 1e9:.3g}" for n in removed.macs)
    return (
        f"channels removed from {len(removed.remaining)} layers: {parameters} million parameters, {macs} billion "
        "multiply-accumulates on the example inputs"
    )
