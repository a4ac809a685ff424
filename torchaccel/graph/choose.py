"""The choice of each layer by measurement: a candidate stays only where it was measured faster than the dense layer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from torchaccel import measure
from torchaccel.graph.cache import ChoiceCache, key
from torchaccel.graph.connect import assemble

Tick = Callable[[str], None]


@dataclass(frozen=True)
class Choice:
    """What one layer runs as, and why."""

    name: str
    type: str
    shape: str
    sparsity: float
    chosen: str
    speedup: float
    dense_ms: float
    chosen_ms: float
    reason: str


def arguments(model: nn.Module, names: Collection[str], inputs: tuple[Tensor, ...]) -> dict[str, tuple[Tensor, ...]]:
    """Module name -> the tensors that it is called with when the model runs on `inputs`."""
    seen: dict[str, tuple[Tensor, ...]] = {}

    def record(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, args: seen.__setitem__(name, args)

    hooks = [model.get_submodule(name).register_forward_pre_hook(record(name)) for name in names]
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: args for name, args in seen.items() if all(isinstance(a, Tensor) for a in args)}


def _timed(
    dense: nn.Module,
    dense_args: tuple[Tensor, ...],
    candidate: nn.Module,
    args: tuple[Tensor, ...],
    cache: ChoiceCache,
    budget_s: float,
) -> dict[str, Any]:
    """Compare on one set of trials; where the candidate leads, confirm on a fresh one. A clear result is remembered."""
    name = key(dense, candidate, args)
    known = cache.get(name)
    if known is not None:
        return known
    steps = (lambda: dense(*dense_args)), (lambda: candidate(*args))
    with torch.no_grad():
        result = measure.compare(*steps, budget_s=budget_s)
        if result.speedup > 1:
            result = measure.compare(*steps, budget_s=budget_s)
    entry = {
        "speedup": result.speedup,
        "low": result.low,
        "dense_ms": result.baseline_median_ms,
        "chosen_ms": result.candidate_median_ms,
    }
    if result.low > 1 or result.high < 1:  # a noisy moment must not decide for good
        cache.put(name, entry)
    return entry


def kind(module: nn.Module) -> str:
    """A layer's form in words: "dense float", "int8", "int8 1x4 sparse"."""
    name = type(module).__name__
    if name.startswith("Dense"):
        return "dense float"
    pattern = getattr(module, "pattern", None)
    words = "int8" if "Int8" in name else "float"
    return f"{words} {pattern} sparse" if pattern else words + (" weight-only" if "WeightOnly" in name else "")


def _shape(dense: nn.Module, args: tuple[Tensor, ...]) -> str:
    x, weight = args[0], dense.weight
    if weight.dim() == 4:
        return f"{tuple(x.shape)} * {tuple(weight.shape)}"
    return f"{tuple(x.shape)} @ {tuple(weight.shape)}"


def _dense_choice(dense: nn.Module, name: str, args: tuple[Tensor, ...], reason: str) -> Choice:
    zeros = float((dense.weight == 0).float().mean()) if dense.weight.numel() else 0.0
    layer = type(dense).__name__.removeprefix("Dense")
    return Choice(name, layer, _shape(dense, args), zeros, "dense float", 1.0, 0.0, 0.0, reason)


def choose(
    model: nn.Module,
    alternatives: Mapping[str, Sequence[nn.Module]],
    kept: Mapping[str, str],
    inputs: tuple[Tensor, ...],
    cache: ChoiceCache,
    budget_s: float = 0.25,
    tick: Tick = lambda name: None,
) -> tuple[dict[str, nn.Module], list[Choice]]:
    """Pick the fastest form of each layer of a dense model.

    Args:
        model: with dense layers under all the names; a fused graph, or modules where it could not be traced.
        alternatives: layer name -> the modules that could replace the dense layer.
        kept: layer name -> why there is no alternative.
        inputs: example inputs; layers are timed on the tensors that they see when the model runs on these, int8 ones
            where their neighbours hand over int8.
        cache: comparisons measured before.
        budget_s: seconds for one comparison.
        tick: called with each name when it has been timed.

    Returns:
        Layer name -> the module that won there, and one Choice per layer, in the order of the model's modules.
    """
    names = [name for name, _ in model.named_modules() if name in alternatives or name in kept]
    dense_args = arguments(model, names, inputs)
    choices = {
        name: _dense_choice(model.get_submodule(name), name, dense_args[name], kept.get(name, "no other form applies"))
        for name in names
        if name in dense_args
    }
    alternatives = {name: forms for name, forms in alternatives.items() if name in choices and forms}
    winners: dict[str, nn.Module] = {}
    rivals = max((len(forms) for forms in alternatives.values()), default=0)
    for rank in range(rivals):
        trial = {name: forms[min(rank, len(forms) - 1)] for name, forms in alternatives.items()}
        timed = {name for name, forms in alternatives.items() if rank < len(forms)}
        _try(model, trial, timed, choices, winners, dense_args, inputs, cache, budget_s, tick)
    # Neighbours that stayed dense change what a layer reads and writes, so the winners are timed again as they will run.
    for _ in range(3):
        before = dict(winners)
        names = set(winners)
        winners.clear()
        _try(model, before, names, choices, winners, dense_args, inputs, cache, budget_s, tick)
        if winners.keys() == before.keys():
            break
    return winners, list(choices.values())


def _try(
    model: nn.Module,
    trial: Mapping[str, nn.Module],
    timed: set[str],
    choices: dict[str, Choice],
    winners: dict[str, nn.Module],
    dense_args: Mapping[str, tuple[Tensor, ...]],
    inputs: tuple[Tensor, ...],
    cache: ChoiceCache,
    budget_s: float,
    tick: Tick,
) -> None:
    """Time the layers of `timed` inside a model that holds all of `trial`; note results in `choices` and `winners`."""
    if not timed:
        return
    assembled = assemble(model, trial)
    args_of = arguments(assembled, timed, inputs)
    batch = inputs[0].shape[0] if inputs[0].dim() else 1
    for name in args_of:
        dense, candidate = model.get_submodule(name), assembled.get_submodule(name)
        result = _timed(dense, dense_args[name], candidate, args_of[name], cache, budget_s)
        label, speedup = kind(trial[name]), result["speedup"]
        best = choices[name].speedup if name in winners else 1.0
        if result["low"] > 1.0 and speedup > best:
            winners[name] = trial[name]
            choices[name] = replace(
                choices[name], chosen=label, speedup=speedup, dense_ms=result["dense_ms"], chosen_ms=result["chosen_ms"],
                reason=f"{label}: {speedup:.2f}x dense at N={batch}",
            )  # fmt: skip
        elif name not in winners:
            spread = "" if speedup <= 1 else f", interval from {result['low']:.2f}x"
            choices[name] = replace(
                choices[name], chosen="dense float", speedup=1.0, dense_ms=result["dense_ms"], chosen_ms=result["dense_ms"],
                reason=f"kept dense: {label} is {speedup:.2f}x at N={batch}{spread}",
            )  # fmt: skip
        tick(name)
