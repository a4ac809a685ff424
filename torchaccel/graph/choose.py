"""The choice of each layer by measurement: a candidate stays only where it was measured faster than the dense layer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from torchaccel import measure
from torchaccel.graph.cache import ChoiceCache, key
from torchaccel.graph.connect import assemble
from torchaccel.graph.weightless import INT8_WEIGHTLESS
from torchaccel.nn._int8 import Int8Module

Tick = Callable[[str], None]

_BUDGET_S = 0.25  # for one comparison


@dataclass(frozen=True)
class Choice:
    """What one layer runs as, and why."""

    name: str
    type: str
    shape: str
    sparsity: float
    chosen: str
    speedup: float
    dense_ms: float | None  # None where nothing was timed
    chosen_ms: float | None
    reason: str


def arguments(model: nn.Module, names: Collection[str], inputs: tuple[Tensor, ...]) -> dict[str, tuple[Tensor, ...]]:
    """Module name -> the tensors that it is called with when the model runs on `inputs`."""
    seen: dict[str, tuple[Tensor, ...]] = {}

    def record(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        return lambda _, args, kwargs: seen.__setitem__(name, (*args, *kwargs.values()))

    hooks = [model.get_submodule(name).register_forward_pre_hook(record(name), with_kwargs=True) for name in names]
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
) -> dict[str, Any]:
    """Compare on one set of trials; where the candidate leads, confirm on a fresh one. A win is remembered."""
    name = key(dense, dense_args, candidate, args)
    known = cache.get(name)
    if known is not None:
        return known
    with torch.no_grad():
        steps = (
            measure.replayed(lambda: dense(*dense_args), args[0].device),
            measure.replayed(lambda: candidate(*args), args[0].device),
        )
        result = measure.settled(*steps, budget_s=_BUDGET_S)
        if result.low > 1:
            result = measure.settled(*steps, budget_s=_BUDGET_S)
    entry = {
        "speedup": result.speedup,
        "low": result.low,
        "dense_ms": result.baseline_median_ms,
        "chosen_ms": result.candidate_median_ms,
    }
    # Losses are timed anew each time: what a busy machine once made slow would stay dense for good.
    if result.low > 1:
        cache.put(name, entry)
    return entry


def kind(module: nn.Module) -> str:
    """A layer's form in words: "dense float", "int8", "int8 1x4 sparse"."""
    name = type(module).__name__
    if name.startswith("Dense"):
        return "dense float"
    pattern = getattr(module, "pattern", None)
    if isinstance(module, Int8Module) and module.is_two_four():
        pattern = pattern or "2:4"
    words = "int8" if "Int8" in name else "float"
    return f"{words} {pattern} sparse" if pattern else words + (" weight-only" if "WeightOnly" in name else "")


def shape_words(dense: nn.Module, args: tuple[Tensor, ...]) -> str:
    """The shapes of what a layer reads and of its weight: "(1, 64) @ (10, 64)"."""
    x, weight = args[0], getattr(dense, "weight", None)
    if weight is None:
        return f"{tuple(x.shape)}"
    if weight.dim() == 4:
        return f"{tuple(x.shape)} * {tuple(weight.shape)}"
    return f"{tuple(x.shape)} @ {tuple(weight.shape)}"


def _refusal(module: nn.Module, args: tuple[Tensor, ...]) -> str | None:
    """Why a layer does not take these inputs, such as an image without a batch dimension, or None."""
    try:
        with torch.no_grad():
            module(*args)
    except ValueError as error:
        return str(error)
    return None


def _error(model: nn.Module, trial: Mapping[str, nn.Module], inputs: tuple[Tensor, ...]) -> str | None:
    try:
        with torch.no_grad():
            assemble(model, trial).forward(*inputs)
    except Exception as error:  # whatever the model's own code raises
        return f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"
    return None


def able(
    model: nn.Module, trial: Mapping[str, nn.Module], inputs: tuple[Tensor, ...]
) -> tuple[Mapping[str, nn.Module], dict[str, str]]:
    """Those of `trial` with which the model runs, and why it does not with the others.

    The model's code may read a layer's weight or its output's strides.
    """
    if _error(model, trial, inputs) is None:
        return trial, {}
    errors = {name: _error(model, {name: module}, inputs) for name, module in trial.items()}
    ran = {name: module for name, module in trial.items() if errors[name] is None}
    if (error := _error(model, ran, inputs)) is not None:
        ran, errors = {}, dict.fromkeys(trial, error)
    words = {name: f"with {kind(trial[name])} the model raises {errors[name]}" for name in trial.keys() - ran.keys()}
    return ran, words


def timings(
    model: nn.Module,
    trial: Mapping[str, nn.Module],
    timed: Collection[str],
    inputs: tuple[Tensor, ...],
    dense_args: Mapping[str, tuple[Tensor, ...]],
    cache: ChoiceCache,
) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Time the layers of `timed` inside a model that holds all of `trial`, each against its dense layer.

    Yields each name with the comparison, or None where a layer that only hands int8 on is handed floats.
    """
    assembled = assemble(model, trial)
    for name, args in arguments(assembled, timed, inputs).items():
        candidate, dense = assembled.get_submodule(name), model.get_submodule(name)
        idle = isinstance(candidate, INT8_WEIGHTLESS) and any(a.is_floating_point() for a in args)
        yield name, None if idle else _timed(dense, dense_args[name], candidate, args, cache)


def choose(
    model: nn.Module,
    alternatives: Mapping[str, Sequence[nn.Module]],
    kept: Mapping[str, str],
    inputs: tuple[Tensor, ...],
    cache: ChoiceCache,
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
        tick: called with a layer's name each time it has been timed.

    Returns:
        Layer name -> the module that won there, and one Choice per layer, in the order of the model's modules.
    """
    names = [name for name, _ in model.named_modules() if name in alternatives or name in kept]
    contest = _Contest(model, inputs, arguments(model, names, inputs), cache, tick)
    for name in names:
        if name in contest.dense_args:  # others are not called on these inputs
            contest.enter(name, kept.get(name, "kept dense: no other form applies"))
    rivals = {}
    for name, forms in alternatives.items():
        if name in contest.choices:
            refused = [_refusal(form, contest.dense_args[name]) for form in forms]
            if able := [form for form, why in zip(forms, refused, strict=True) if why is None]:
                rivals[name] = able
            elif forms:
                contest.enter(name, f"kept dense: {refused[-1]}")
    for rank in range(max(map(len, rivals.values()), default=0)):
        trial = {name: forms[min(rank, len(forms) - 1)] for name, forms in rivals.items()}
        contest.run(trial, {name for name, forms in rivals.items() if rank < len(forms)})
    # Neighbours that stay dense change what a layer reads and writes, so winners are timed again as they will run.
    for _ in range(3):
        before, contest.winners = contest.winners, {}
        contest.run(before, before.keys())
        if contest.winners.keys() == before.keys():
            break
    return contest.winners, list(contest.choices.values())


@dataclass
class _Contest:
    """The comparisons made so far."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
    dense_args: Mapping[str, tuple[Tensor, ...]]
    cache: ChoiceCache
    tick: Tick
    winners: dict[str, nn.Module] = field(default_factory=dict)
    choices: dict[str, Choice] = field(default_factory=dict)

    def enter(self, name: str, reason: str) -> None:
        """A layer starts out dense."""
        dense = self.model.get_submodule(name)
        weight = getattr(dense, "weight", None)
        zeros = 0.0 if weight is None or not weight.numel() else float((weight == 0).float().mean())
        layer = type(dense).__name__.removeprefix("Dense")
        shape = shape_words(dense, self.dense_args[name])
        self.choices[name] = Choice(name, layer, shape, zeros, "dense float", 1.0, None, None, reason)

    def run(self, trial: Mapping[str, nn.Module], timed: Collection[str]) -> None:
        """Time the layers of `timed` inside a model that holds all of `trial`."""
        trial, errors = able(self.model, trial, self.inputs)
        for name in errors.keys() - self.winners.keys():
            self.enter(name, f"kept dense: {errors[name]}")
        timed = [name for name in timed if name in trial]
        if not timed:
            return
        for name, result in timings(self.model, trial, timed, self.inputs, self.dense_args, self.cache):
            if result is None:
                self.enter(name, "kept dense: it is handed floats")
            else:
                self._judge(name, trial[name], result)
            self.tick(name)

    def _judge(self, name: str, module: nn.Module, result: Mapping[str, float]) -> None:
        batch = self.inputs[0].shape[0] if self.inputs[0].dim() else 1
        label, speedup, choice = kind(module), result["speedup"], self.choices[name]
        best = choice.speedup if name in self.winners else 1.0
        if result["low"] > 1.0 and speedup > best:
            self.winners[name] = module
            self.choices[name] = replace(
                choice,
                chosen=label,
                speedup=speedup,
                dense_ms=result["dense_ms"],
                chosen_ms=result["chosen_ms"],
                reason=f"{label}: {speedup:.2f}x dense at N={batch}",
            )
        elif name not in self.winners:
            spread = "" if speedup <= 1 else f", interval from {result['low']:.2f}x"
            self.choices[name] = replace(
                choice,
                chosen="dense float",
                speedup=1.0,
                dense_ms=result["dense_ms"],
                chosen_ms=result["dense_ms"],
                reason=f"kept dense: {label} is {speedup:.2f}x at N={batch}{spread}",
            )
