"""calibrate: the range of each layer's input, observed while the model runs on calibration batches."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from torchaccel.compress.configs import Int8Static
from torchaccel.compress.observers import OBSERVERS, MinMaxObserver
from torchaccel.nn import InputRange


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode without gradients; each module's own training flag comes back."""
    training = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, flag in training:
            module.training = flag


def inputs_of(batch: Any, count: int = 1) -> tuple[Tensor, ...]:
    """The model's `count` inputs in a calibration batch: the tensor, or the first items of a tuple or list."""
    items = tuple(batch) if isinstance(batch, tuple | list) and batch else (batch,)
    inputs = items[:count]
    if len(inputs) < count or not all(isinstance(x, Tensor) for x in inputs):
        first = "first item is the input tensor" if count == 1 else f"first {count} items are the input tensors"
        raise ValueError(
            f"calibration: a batch is {type(batch).__name__} holding {', '.join(type(x).__name__ for x in items)}, "
            f"accepted is {'a tensor or ' if count == 1 else ''}a tuple whose {first}"
        )
    return inputs


def _inputs_needed(model: nn.Module) -> int:
    """How many positional arguments the model's forward cannot do without, at least 1."""
    parameters = inspect.signature(model.forward).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return max(1, sum(p.kind in positional and p.default is inspect.Parameter.empty for p in parameters))


def residual_of(name: str) -> str:
    """The key under which `calibrate` gives the range of a layer's residual; layers have no submodules."""
    return f"{name}.residual"


def _hook(name: str, observers: dict[str, MinMaxObserver], observer: type[MinMaxObserver]) -> Callable:
    def observe(module: nn.Module, args: tuple, kwargs: dict) -> None:
        for key, x in zip((name, residual_of(name)), (*args, *kwargs.values()), strict=False):
            if not isinstance(x, Tensor):
                continue
            try:
                observers.setdefault(key, observer()).observe(x.detach())
            except ValueError as error:
                raise ValueError(
                    f"calibration: layer {name!r}: {error}; calibrate with inputs on which the model is finite"
                ) from None

    return observe


def calibrate(
    model: nn.Module,
    names: Sequence[str],
    batches: Iterable,
    config: Int8Static | None = None,
    inputs: int | None = None,
) -> dict[str, InputRange]:
    """Run the model on batches and find the range of the input of each named layer.

    Args:
        model: float; run in eval mode without gradients, on the device of its parameters. Hooks and training flags are
            as before when this returns or raises.
        names: of submodules, as in `model.named_modules()`.
        batches: yields tensors, or tuples whose first items are the model's inputs.
        config: which observer, and how many batches at most.
        inputs: how many inputs the model is called with; None is as many as its forward cannot do without.

    Returns:
        The range by name, for the layers that were reached; uint8, with zero point 0 where no input was negative. The
        range of a second input, a residual, is under `residual_of(name)`.

    Raises:
        ValueError: no batch, a batch without an input tensor, or a layer that saw NaN or an infinity.
        AttributeError: a name that the model lacks.

    Source: min-max and mean-squared-error range setting as surveyed in Nagel et al., A White Paper on Neural Network
    Quantization, 2021, section 3.1.
    """
    config = Int8Static() if config is None else config
    observers: dict[str, MinMaxObserver] = {}
    needed = _inputs_needed(model) if inputs is None else inputs
    device = next((p.device for p in model.parameters()), None)
    handles = []
    try:
        for name in names:
            observe = _hook(name, observers, OBSERVERS[config.observer])
            handles.append(model.get_submodule(name).register_forward_pre_hook(observe, with_kwargs=True))
        count = 0
        with evaluating(model):
            for batch in islice(batches, config.batches):
                model(*(x if device is None else x.to(device) for x in inputs_of(batch, needed)))
                count += 1
    finally:
        for handle in handles:
            handle.remove()
    if count == 0:
        raise ValueError("calibration: it holds no batch, accepted is at least one")
    return {name: observer.range() for name, observer in observers.items()}
