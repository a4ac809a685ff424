"""Mask: a pruning mask as a parametrization of a weight, which training, state dicts and deepcopy keep."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

M = TypeVar("M", bound=nn.Module)


class Mask(nn.Module):
    """`weight -> weight where mask else 0`; gradients of pruned weights are zero.

    Args:
        mask: bool, of the weight's shape.
        pattern: that the mask follows.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, pattern: str) -> None:
        super().__init__()
        self.pattern = pattern
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return torch.where(self.mask, weight, 0.0)

    def extra_repr(self) -> str:
        return f"pattern={self.pattern}, sparsity={1 - self.mask.float().mean().item():.3f}"


def mask_of(module: nn.Module) -> Mask | None:
    """The pruning mask of a module's weight, or None."""
    if not parametrize.is_parametrized(module, "weight"):
        return None
    return next((p for p in module.parametrizations.weight if isinstance(p, Mask)), None)  # type: ignore[union-attr]


def set_mask(module: nn.Module, mask: Tensor, pattern: str) -> None:
    """Put a mask on a module's weight or replace the values of the one that is there; the parameter stays the same."""
    present = mask_of(module)
    if present is None:
        # Registering writes to the parameter it is given, after which DistributedDataParallel would wait for its
        # gradient for ever; so it gets another one on the same memory.
        weight: Any = module.weight
        module.weight = nn.Parameter(weight.detach(), weight.requires_grad)
        parametrize.register_parametrization(module, "weight", Mask(mask, pattern))
        module.parametrizations.weight.original = weight  # type: ignore[union-attr]
    else:
        present.mask.copy_(mask)


def _bake(module: nn.Module) -> None:
    """Write the masked weight into the parameter and make the module what it was before its mask.

    `parametrize.remove_parametrizations` takes the property off the module's class, which deepcopies share: they would
    lose their weight. So the module leaves that class instead, unless something else is parametrized there.
    """
    parametrizations: Any = module.parametrizations
    if len(parametrizations) > 1:
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
        return
    original = parametrizations.weight.original
    with torch.no_grad():
        original.copy_(module.weight)
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    # In front, as the layer's own constructor has it.
    module._parameters = {"weight": original, **module._parameters}


def finalize_masks_(model: M) -> M:
    """Bake all pruning masks into the weights, in place: the weights hold the zeros, the masks are gone.

    Parameters keep their identity, so an optimizer still knows them; further training fills the zeros.

    Args:
        model: as `sparsify_` left it, trained or not; without masks nothing happens.

    Returns:
        The same model.
    """
    for module in list(model.modules()):
        if mask_of(module) is not None:
            _bake(module)
    return model
