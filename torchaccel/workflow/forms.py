"""The dense forms of a model: what an optimized model has to beat, and what is returned where nothing beats it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from torchaccel.workflow.graphed import Graphed

HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Form:
    """One way to run the same dense model."""

    name: str
    model: nn.Module
    note: str = ""
    rounds: bool = False  # whether it computes in fewer bits than the model that was given


class Cast(nn.Module):
    """Runs a model in another dtype or memory format, and gives outputs back in the dtype of the first input."""

    def __init__(self, model: nn.Module, dtype: torch.dtype | None, channels_last: bool) -> None:
        super().__init__()
        self.model, self.dtype, self.channels_last = model, dtype, channels_last
        self.training = model.training

    def forward(self, *inputs: object, **named: object) -> object:
        given = [x for x in (*inputs, *named.values()) if isinstance(x, Tensor)]
        outputs = self.model(*map(self._prepare, inputs), **{name: self._prepare(x) for name, x in named.items()})
        if self.dtype is None:
            return outputs
        back = next((x.dtype for x in given if x.is_floating_point()), torch.float32)
        return torch.utils._pytree.tree_map_only(Tensor, lambda y: y.to(back) if y.is_floating_point() else y, outputs)

    def _prepare(self, x: object) -> object:
        if not isinstance(x, Tensor):
            return x
        if self.dtype is not None and x.is_floating_point():
            x = x.to(self.dtype)
        if self.channels_last and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return x


def _channels_last(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    held = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Cast(held if dtype is None else held.to(dtype), dtype, channels_last=True)


def _compiled(model: nn.Module) -> nn.Module:
    return cast(nn.Module, torch.compile(model, options={"freezing": True}))


def _cpu_forms(model: nn.Module) -> dict[str, Callable[[], nn.Module]]:
    return {
        "eager": lambda: model,
        "channels_last": lambda: _channels_last(model),
        "torch.compile, frozen": lambda: _compiled(model),
    }


def _cuda_forms(model: nn.Module) -> dict[str, Callable[[], nn.Module]]:
    """Each with CUDA graphs; Inductor's own would overwrite a result with the next call."""
    forms = _cpu_forms(model)
    for dtype in (None, *HALVES):
        name = "" if dtype is None else f", {str(dtype).removeprefix('torch.')}"
        forms[f"channels_last, CUDA graphs{name}"] = partial(_graphed, model, dtype, compiled=False)
        forms[f"torch.compile, frozen, CUDA graphs{name}"] = partial(_graphed, model, dtype, compiled=True)
    return forms


def _graphed(model: nn.Module, dtype: torch.dtype | None, compiled: bool) -> nn.Module:
    held = _channels_last(model, dtype)
    return Graphed(_compiled(held) if compiled else held)


def dense_forms(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[list[Form], dict[str, str]]:
    """Build and run every dense form.

    Returns:
        The forms that ran, and for each that did not its name and the reason.
    """
    builders = _cuda_forms(model) if inputs[0].device.type == "cuda" else _cpu_forms(model)
    forms, failed = [], {}
    for name, build in builders.items():
        try:
            form = Form(name, build(), rounds=name.endswith("float16"))
            with torch.no_grad():
                for _ in range(2):  # the second call is the one that a graph is captured for
                    form.model(*inputs)
            if isinstance(form.model, Graphed) and form.model.refused:
                raise RuntimeError(f"not captured: {form.model.refused[0]}")
        except Exception as error:  # a form that cannot run (no compiler, an op it lacks) is a form less, and said so
            if name == "eager":
                raise
            failed[name] = f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0][:200]}"
        else:
            forms.append(form)
    return forms, failed
