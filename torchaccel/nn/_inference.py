"""What keeps autograd honest: int8 and packed layers compute forward only, and say so when a gradient is asked for."""

from __future__ import annotations

import torch
from torch import Tensor

_MESSAGE = (
    "a backward pass reached a torchaccel layer, which is inference-only: train the float model (sparsify_ keeps it "
    "trainable) and convert it afterwards, or run this model under torch.inference_mode()"
)


# An op, so that torch.compile can trace the backward pass without running it: it raises only where one is run.
@torch.library.custom_op("torchaccel::refuse_backward", mutates_args=())
def _refuse_backward(grad: Tensor, like: Tensor) -> Tensor:
    raise RuntimeError(_MESSAGE)


@_refuse_backward.register_fake
def _(grad: Tensor, like: Tensor) -> Tensor:
    return torch.empty_like(like)


class _InferenceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y: Tensor, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        return y.view_as(y)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *(_refuse_backward(grad, like) for like in ctx.saved_tensors))


def needs_guard(*inputs: Tensor | None) -> bool:
    """Whether autograd would record an op on these inputs."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)


def guard(y: Tensor, *inputs: Tensor | None) -> Tensor:
    """`y` as a result that depends on `inputs`, through which a backward pass raises RuntimeError.

    An int8 `y` is returned as it is: autograd does not follow integers.
    """
    if not y.is_floating_point():
        return y
    return _InferenceOnly.apply(y, *(t for t in inputs if t is not None and t.requires_grad))
