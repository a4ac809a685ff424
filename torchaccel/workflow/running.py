"""How a finished model runs: behind CUDA graphs on a GPU, in slices of its batch on a CPU where that is faster."""

from __future__ import annotations

from torch import Tensor, nn

from torchaccel.workflow.graphed import Graphed, graphed
from torchaccel.workflow.sliced import Sliced, sliced


def running(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """The model as it runs best on inputs like these."""
    return sliced(graphed(model, inputs[0].device), inputs)


def inner(model: nn.Module) -> nn.Module:
    """The model that `running` or `torch.compile` was given."""
    model = getattr(model, "_orig_mod", model)
    return model.model if isinstance(model, Graphed | Sliced) else model
