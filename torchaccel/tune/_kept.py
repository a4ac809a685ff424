"""What tuning changes for a while: a model's tensors and modes, its optimizer, random numbers, a loader's place."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer


@contextmanager
def kept(model: nn.Module, optimizer: Optimizer | None = None, batches: object = None) -> Iterator[None]:
    """All of it is as it was when the block ends, to the bit, however it ends; inside, gradients start from None.

    `batches` goes back to its place if it has `state_dict` and `load_state_dict`, as `torchaccel.data.Loader` has.
    """
    with ExitStack() as stack:
        stack.enter_context(modes_kept(model))
        stack.enter_context(_random_numbers())
        stack.enter_context(_place(batches))
        stack.enter_context(_tensors(model, optimizer))
        if optimizer is not None:
            stack.enter_context(_optimizer(optimizer))
        yield


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Each module trains or not, as before."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _random_numbers() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():  # of the CPU and of all GPUs
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def _place(batches: Any) -> Iterator[None]:
    resumes = hasattr(batches, "state_dict") and hasattr(batches, "load_state_dict")
    state = copy.deepcopy(batches.state_dict()) if resumes else None
    try:
        yield
    finally:
        if resumes:
            batches.load_state_dict(state)


@contextmanager
def _tensors(model: nn.Module, optimizer: Optimizer | None) -> Iterator[None]:
    """Parameters, buffers and gradients: the same tensors with the same contents."""
    tables: list[dict[str, Any]] = [t for module in model.modules() for t in (module._parameters, module._buffers)]
    held = [(table, dict(table)) for table in tables]
    tensors = {id(t): t for _, table in held for t in table.values() if t is not None}
    groups = [] if optimizer is None else optimizer.param_groups
    tensors |= {id(p): p for group in groups for p in group["params"]}  # it may train more than the model
    contents = [(t, t.detach().clone()) for t in tensors.values() if _is_writable(t)]
    gradients = [(t, t.grad) for t in tensors.values() if t.is_leaf]
    for tensor, _ in gradients:
        tensor.grad = None
    with ExitStack() as stack:  # what cannot be put back keeps nothing else from it
        for table, entries in held:
            stack.callback(_replace, table, entries)
        for tensor, content in contents:
            stack.callback(_write, tensor, content)
        for tensor, gradient in gradients:
            stack.callback(setattr, tensor, "grad", gradient)
        yield


def _is_writable(tensor: Tensor) -> bool:
    """Not one of inference mode, nor one made by `expand`, whose elements share memory: in-place changes raise."""
    shared = any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return not tensor.is_inference() and not shared


def _replace(table: dict[str, Any], entries: dict[str, Any]) -> None:
    table.clear()
    table.update(entries)


@torch.no_grad()
def _write(tensor: Tensor, content: Tensor) -> None:
    tensor.copy_(content)


@contextmanager
def _optimizer(optimizer: Optimizer) -> Iterator[None]:
    state = {parameter: copy.deepcopy(found) for parameter, found in optimizer.state.items()}
    groups = [{key: _copied(key, value) for key, value in group.items()} for group in optimizer.param_groups]
    try:
        yield
    finally:
        optimizer.state.clear()
        optimizer.state.update(state)
        for group, before in zip(optimizer.param_groups, groups, strict=True):
            group.clear()
            group.update(before)


def _copied(key: str, value: Any) -> Any:
    return list(value) if key == "params" else value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)
