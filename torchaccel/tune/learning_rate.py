"""find_lr: the learning-rate range test."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from torchaccel.tune._kept import kept
from torchaccel.tune._training import Loss, check_training, train_step
from torchaccel.tune.rates import LearningRates, diverged


def find_lr(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Iterable[Any],
    loss: Loss,
    *,
    min_lr: float = 1e-7,
    max_lr: float = 10.0,
    steps: int = 100,
) -> LearningRates:
    """Train for some steps while the learning rate rises, see where the loss falls fastest, and put all back.

    The rate rises from `min_lr` to `max_lr`, by the same factor at each step, and ends early where the loss diverges.
    Afterwards the model, the optimizer, random numbers and the loader's place are what they were, to the bit, also
    after an exception. Masks of `sparsify_` hold meanwhile.

    Args:
        model: trained as it is set; where it is in evaluation mode, all of it in training mode.
        optimizer: of the model's parameters. Where its groups differ in their rate, they keep the ratio, and all rates
            here are those of the largest.
        batches: what `loss` takes; iterated again where it has fewer than `steps`, which an iterator cannot be. A
            loader with `state_dict` and `load_state_dict` goes back to its place.
        loss: `loss(model, batch) -> Tensor`, a scalar to minimize.
        min_lr: the first rate, above 0.
        max_lr: the last rate, above `min_lr`.
        steps: how many steps lead from the first to the last, at least 20.

    Returns:
        LearningRates: all losses, and a `suggestion`, or the reason why there is none.

    Raises:
        ValueError: an argument that is not as described, an iterator of too few batches, or a loss that is no scalar
            or has no gradient.

    Equivalent to a loop of `for group in optimizer.param_groups: group["lr"] = lr` and
    `optimizer.zero_grad(); loss(model, batch).backward(); optimizer.step()`.

    Source: Smith, Cyclical Learning Rates for Training Neural Networks, 2017 (arXiv 1506.01186).
    """
    check_training("find_lr", model, optimizer, loss)
    _check(min_lr, max_lr, steps)
    rates = [min_lr * (max_lr / min_lr) ** (step / (steps - 1)) for step in range(steps)]
    with kept(model, optimizer, batches):
        if not model.training:
            model.train()
        losses = list(_losses(model, optimizer, rates, _cycled(batches, steps), loss))
    return LearningRates.of(rates, losses)


def _losses(
    model: nn.Module, optimizer: Optimizer, rates: list[float], batches: Iterator[Any], loss: Loss
) -> Iterator[float]:
    """The loss before each step, and no more of them where it has diverged."""
    groups = optimizer.param_groups
    largest = max(float(group["lr"]) for group in groups)
    shares = [float(group["lr"]) / largest if largest else 1.0 for group in groups]
    seen: list[float] = []
    for rate, batch in zip(rates, batches, strict=False):
        for group, share in zip(groups, shares, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * share)
            else:
                group["lr"] = rate * share
        seen.append(train_step(model, optimizer, loss, batch))
        yield seen[-1]
        if diverged(seen, len(rates)):
            return


def _cycled(batches: Iterable[Any], steps: int) -> Iterator[Any]:
    """`steps` batches, from the start again where they end."""
    done = 0
    while done < steps:
        before = done
        for batch in batches:
            yield batch
            done += 1
            if done == steps:
                return
        if done == before:
            raise ValueError(
                f"find_lr: batches ended after {done} of {steps} steps, accepted is an iterable that starts anew, such "
                "as a loader, or an iterator of more batches"
            )


def _check(min_lr: float, max_lr: float, steps: int) -> None:
    if not all(isinstance(rate, int | float) for rate in (min_lr, max_lr)) or not 0 < min_lr < max_lr < math.inf:
        raise ValueError(f"find_lr: min_lr is {min_lr!r}, max_lr is {max_lr!r}, accepted is 0 < min_lr < max_lr")
    if not isinstance(steps, int) or steps < 20:
        raise ValueError(f"find_lr: steps is {steps!r}, accepted is a whole number of at least 20")
