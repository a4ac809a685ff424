"""The choice of chains by measurement: a run of layers as one op, against the best forms of its layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from torchaccel import measure
from torchaccel.graph.chain import runs
from torchaccel.graph.choose import Choice, kind
from torchaccel.graph.connect import assemble
from torchaccel.nn.conv_chain import takes

_BUDGET_S = 1.0  # for one comparison of the whole model


def _faster(now: nn.Module, trial: nn.Module, inputs: tuple[Tensor, ...]) -> measure.Comparison | None:
    """The comparison of a trial that is faster, confirmed on fresh measurements, or None."""
    with measure.inference():
        steps = (lambda: now(*inputs)), (lambda: trial(*inputs))
        if measure.settled(*steps, budget_s=_BUDGET_S).low <= 1:
            return None
        result = measure.settled(*steps, budget_s=_BUDGET_S)
    return result if result.low > 1 else None


def choose_chains(
    model: nn.Module,
    alternatives: Mapping[str, Sequence[nn.Module]],
    winners: Mapping[str, nn.Module],
    choices: Sequence[Choice],
    inputs: tuple[Tensor, ...],
    running: Callable[[nn.Module], nn.Module] = lambda model: model,
    tick: Callable[[], None] = lambda: None,
) -> tuple[dict[str, nn.Module], list[Choice], set[str]]:
    """Make chains of the runs of layers that could be int8 or sparse, where the whole model gets faster by it.

    A layer that is slower in that form by itself may be faster inside a chain, where nothing is converted around it.

    Args:
        model: the dense graph of `prepare`; a model that was not traced has no chains.
        alternatives, winners, choices: what `choose` was given and what it returned.
        inputs: example inputs.
        running: makes of a model what is run in its place, and so timed.
        tick: called after each run.

    Returns:
        The winners and choices as they are now, and the names of the layers that run in chains.
    """
    chosen, chained = dict(winners), set[str]()
    forms = {name: winners.get(name, among[0]) for name, among in alternatives.items() if among}
    able = {name: form for name, form in forms.items() if takes(form, connected=False)}
    if not isinstance(model, fx.GraphModule) or inputs[0].device.type != "cpu":
        return chosen, list(choices), chained
    by_name = {choice.name: choice for choice in choices}
    try:
        with torch.no_grad():
            whole = assemble(model, chosen | able)
            found = runs(whole) if isinstance(whole, fx.GraphModule) else []
    except Exception:  # the model's own code may read what a layer lost; `choose` has said so already
        found = []
    now = running(assemble(model, chosen)) if found else model
    for run in found:
        names = {str(node.target) for node in run} & able.keys()
        with_run = chosen | {name: able[name] for name in names}
        try:
            trial = running(assemble(model, with_run, chained | names))
            result = _faster(now, trial, inputs)
        except ValueError:  # a layer refuses what it is handed, as an image without a batch; `choose` has said so too
            result = None
        tick()
        if result is None:
            continue
        now, chosen, chained = trial, with_run, chained | names
        for name in names:
            by_name[name] = _in_chain(by_name[name], able[name], len(names), result.speedup, name in winners)
    return chosen, [by_name[choice.name] for choice in choices], chained


def _in_chain(choice: Choice, form: nn.Module, layers: int, speedup: float, won: bool) -> Choice:
    alone = choice.reason if won else f"alone {choice.reason.removeprefix('kept dense: ')}"
    reason = f"in a chain of {layers} layers, {speedup:.2f}x the model without it; {alone}"
    return replace(choice, chosen=kind(form), reason=reason)
