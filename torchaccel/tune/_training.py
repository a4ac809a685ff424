"""One step of training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

Loss = Callable[[nn.Module, Any], Tensor]


def train_step(model: nn.Module, optimizer: Optimizer, loss: Loss, batch: Any) -> float:
    """Forward, backward and step; returns the loss before the step. Gradients are recorded also where they are off.

    Raises:
        ValueError: `loss` returned no scalar, or one without gradient.
    """
    seen: list[float] = []

    def closure() -> Any:  # an optimizer such as LBFGS calls it several times
        optimizer.zero_grad()
        value = _scalar(loss(model, batch))
        value.backward()
        seen.append(value.item())
        return value

    optimizer.step(closure)
    return seen[0]


def check_training(caller: str, model: object, optimizer: object, loss: object) -> None:
    """A module, an optimizer of its parameters and a function, or ValueError."""
    check_model(caller, model)
    if not isinstance(optimizer, Optimizer):
        raise ValueError(f"{caller}: optimizer is a {type(optimizer).__name__}, accepted is a torch.optim.Optimizer")
    own = {id(parameter) for parameter in model.parameters()}  # type: ignore[attr-defined]
    if not any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
        raise ValueError(
            f"{caller}: optimizer holds none of the model's parameters, accepted is one that was made of them"
        )
    if not callable(loss) or isinstance(loss, nn.Module):
        raise ValueError(f"{caller}: loss is a {type(loss).__name__}, accepted is a function loss(model, batch)")


def check_model(caller: str, model: object) -> None:
    """A module, or ValueError."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"{caller}: model is a {type(model).__name__}, accepted is a torch.nn.Module")


def _scalar(value: object) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        given = type(value).__name__
        if isinstance(value, Tensor):
            given = f"a tensor of shape {tuple(value.shape)}" + ("" if value.requires_grad else " without gradient")
        raise ValueError(f"loss returned {given}, accepted is a scalar tensor with a gradient")
    return value
