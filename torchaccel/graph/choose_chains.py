"""The choice of chains by measurement: a run of layers as one op, against the best forms of its layers."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor, fx, nn

from torchaccel import measure
from torchaccel.graph.chain import chain_of, runs
from torchaccel.graph.choose import Choice, arguments, kind
from torchaccel.graph.connect import assemble
from torchaccel.nn.conv_chain import takes
from torchaccel.nn.dense import DenseConv2d, DenseConvTranspose2d

_BUDGET_S = 1.0  # for the first comparisons of the whole model, one for each run
_LEAST_BUDGET_S = 0.25  # for one comparison, of the model or of a layer


def _faster(now: measure.Step, trial: measure.Step, budget_s: float) -> measure.Comparison | None:
    """The comparison of a trial that is faster, confirmed on fresh measurements, or None."""
    with measure.inference():
        if measure.settled(now, trial, budget_s).low <= 1:
            return None
        result = measure.settled(now, trial, budget_s)
    return result if result.low > 1 else None


@dataclass(frozen=True)
class _Trial:
    """Layers that go into chains together, and what the report says of where."""

    names: frozenset[str]
    words: str


def _faster_alone(
    graph: fx.GraphModule, found: Sequence[list[fx.Node]], now: nn.Module, inputs: tuple[Tensor, ...]
) -> list[str]:
    """Layers that are faster as a chain of one, on what they read now."""
    chains = {str(node.target): chain_of(graph, [node]) for (node,) in found}
    faster = []
    for name, args in arguments(now, chains, inputs).items():
        steps = partial(now.get_submodule(name), *args), partial(chains[name], *args)
        with contextlib.suppress(ValueError, TypeError):  # it refuses what it is handed
            if _faster(*steps, _LEAST_BUDGET_S):
                faster.append(name)
    return faster


def choose_chains(
    model: nn.Module,
    alternatives: Mapping[str, Sequence[nn.Module]],
    winners: Mapping[str, nn.Module],
    choices: Sequence[Choice],
    inputs: tuple[Tensor, ...],
    running: Callable[[nn.Module], nn.Module] = lambda model: model,
    tick: Callable[[], None] = lambda: None,
) -> tuple[dict[str, nn.Module], list[Choice], set[str]]:
    """Make chains of the runs of layers that could be int8 or float, where the whole model gets faster by it.

    A layer that is slower in that form by itself may be faster inside a chain, where nothing is converted around it. A
    run that loses with its dense layers is tried again without them. Layers that are runs by themselves are timed by
    themselves, and those that win then tried together.

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
    if not isinstance(model, fx.GraphModule) or inputs[0].device.type != "cpu":
        return chosen, list(choices), chained
    forms = {name: winners.get(name, among[0]) for name, among in alternatives.items() if among}
    able = {name: form for name, form in forms.items() if takes(form, connected=False)}
    by_name = {choice.name: choice for choice in choices}
    dense = {name: model.get_submodule(name) for name in by_name.keys() - forms.keys()}
    strongest = DenseConv2d | DenseConvTranspose2d
    held = able | {name: layer for name, layer in dense.items() if isinstance(layer, strongest)}

    def trials(names: Collection[str]) -> list[_Trial]:
        try:
            whole = assemble(model, chosen | able)
            assert isinstance(whole, fx.GraphModule)
            found = runs(whole, names)
        except Exception:  # the model's own code may read what a layer lost; `choose` has said so already
            return []
        made = []
        for run in (run for run in found if len(run) > 1):
            layers = frozenset(str(node.target) for node in run) & held.keys()
            made.append(_Trial(layers, f"in a chain of {len(layers) if len(layers) > 1 else len(run)} layers"))
        alone = _faster_alone(whole, [run for run in found if len(run) == 1], assemble(model, chosen), inputs)
        return made + ([_Trial(frozenset(alone), "in a chain of its own")] if alone else [])

    pending = deque(trials(held.keys()))
    budget_s = max(_BUDGET_S / max(len(pending), 1), _LEAST_BUDGET_S)
    now = running(assemble(model, chosen)) if pending else model
    while pending:
        trial = pending.popleft()
        pruned = trial.names & able.keys()
        with_run = chosen | {name: able[name] for name in pruned}
        try:
            tried = running(assemble(model, with_run, chained | trial.names))
            result = _faster(partial(now, *inputs), partial(tried, *inputs), budget_s)
        except ValueError:  # a layer refuses what it is handed, as an image without a batch; `choose` has said so too
            result = None
        tick()
        if result is None:
            if pruned and pruned != trial.names:
                pending.extend(trials(pruned))
            continue
        now, chosen, chained = tried, with_run, chained | trial.names
        for name in trial.names:
            words = f"{trial.words}, {result.speedup:.2f}x the model without it"
            by_name[name] = _in_chain(by_name[name], held[name], words, name in winners, name in able)
    return chosen, [by_name[choice.name] for choice in choices], chained


def _in_chain(choice: Choice, form: nn.Module, words: str, won: bool, exchanged: bool) -> Choice:
    before = choice.reason if won else choice.reason.removeprefix("kept dense: ")
    alone = "alone " if exchanged and not won else ""
    return replace(choice, chosen=kind(form), reason=f"{words}; {alone}{before}")
