"""Prune: a Lightning callback that prunes while the model trains."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from torchaccel.compress import Sparsity, finalize_masks_, sparsify_
from torchaccel.compress.masks import mask_of
from torchaccel.compress.sparsify import choose_layers
from torchaccel.lightning._package import package

if TYPE_CHECKING:
    from pytorch_lightning import Callback, LightningModule, Trainer
else:
    Callback = package().Callback


class Prune(Callback):
    """Prune by magnitude at the start of chosen epochs; what is pruned stays zero from then on.

    Pruned weights are set to zero after each step of each optimizer (not within one, where LBFGS runs the model several
    times), and their gradients are zero. The module itself stays as it is: no layer, parameter or name changes, so that
    checkpoints load into a module without this callback, zeros and all, and it works with any optimizer, automatic or
    manual, mixed precision, DDP and weight averaging. A resumed run has the same masks, which lie in the checkpoint, a
    bit a weight.

    Scores from before a pruning step count no more: ModelCheckpoint replaces what it kept until then first, and has no
    best model until it saves again; EarlyStopping begins anew, and its patience does not end before the last step. So
    the best model is one with all its zeros. The metric `sparsity` is the share of zeros in the pruned layers, logged
    at the end of each epoch.

    A trainer takes several of these, for layers with other patterns, amounts or epochs.

    Args:
        sparsity: the pattern and the amount. Its `steps` are the amounts, one for each of `epochs`; without them the
            amounts rise to the last one along a cubic curve, fast at first.
        epochs: at whose start to prune, ascending from 0; they must lie below the trainer's `max_epochs`.
        filter_fn: as in `sparsify_`, on the names of the LightningModule; None prunes what that prunes by default.

    Raises:
        ValueError: the pattern "channel", epochs that are not ascending, or not as many as steps; when training starts,
            also epochs that are never reached, a strategy that shards parameters, masks of `sparsify_` in the module,
            and a module of which no layer can be pruned.

    Equivalent to `sparsify_` at the start of epochs, with checkpoints of the plain module.

    Source: Zhu and Gupta, To prune, or not to prune, 2017, for the cubic curve.
    """

    def __init__(
        self, sparsity: Sparsity, epochs: Iterable[int], filter_fn: Callable[[nn.Module, str], bool] | None = None
    ) -> None:
        if not isinstance(sparsity, Sparsity):
            raise ValueError(f"Prune: sparsity is {sparsity!r}, accepted is a Sparsity")
        if sparsity.pattern == "channel":
            raise ValueError(
                "Prune: pattern is 'channel', accepted are those of masks, since an optimizer does not survive "
                "the removal; lightning.optimize removes channels between runs, remove_channels_ before one"
            )
        self.sparsity, self.epochs, self.filter_fn = sparsity, _checked(epochs), filter_fn
        self.amounts = _amounts(sparsity, len(self.epochs))
        self._amount = 0.0
        self._pruned: dict[str, Tensor] = {}  # by layer: bool, of its weight's shape, on the CPU
        self._handles: list[Any] = []

    @property
    def state_key(self) -> str:
        return self._generate_state_key(pattern=self.sparsity.pattern, amounts=self.amounts, epochs=self.epochs)

    def state_dict(self) -> dict[str, Any]:
        """The amount that was pruned so far, and the masks: a shape and packed bits for each layer."""
        return {
            "amount": self._amount,
            "pruned": {name: (list(pruned.shape), _packed(pruned)) for name, pruned in self._pruned.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._amount = state_dict["amount"]
        self._pruned = {name: _unpacked(*held) for name, held in state_dict["pruned"].items()}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._release()
        self._amount, self._pruned = 0.0, {}  # a resumed run loads its state after this
        strategy = trainer.strategy
        if strategy.restore_checkpoint_after_setup:  # those that shard
            raise ValueError(
                f"Prune: the strategy is {type(strategy).__name__}, accepted are those that keep parameters whole: "
                "one device, or DDP"
            )
        if 0 <= (trainer.max_epochs or -1) <= self.epochs[-1] and not _is_trial(trainer):
            raise ValueError(
                f"Prune: epochs is {self.epochs}, accepted are epochs below max_epochs={trainer.max_epochs}"
            )
        if (name := next((name for name, m in pl_module.named_modules() if mask_of(m) is not None), None)) is not None:
            raise ValueError(
                f"Prune: {name!r} has a mask of sparsify_, accepted is a module without; finalize_masks_ bakes them in"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        layers, kept = choose_layers(pl_module, self.sparsity.pattern, self.filter_fn)
        if not layers:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in list(kept.items())[:3])
            raise ValueError(
                f"Prune: no layer of {type(pl_module).__name__} can be pruned as {self.sparsity.pattern} ({reasons})"
            )
        self._hold(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Not at the epoch's start: that is passed over when a run resumes from the last batch of the epoch before.
        steps = zip(self.epochs, self.amounts, strict=True)
        due = max((amount for epoch, amount in steps if epoch <= trainer.current_epoch), default=0.0)
        if due > self._amount:
            self._tighten(trainer, pl_module, due)
            _forget_best(trainer)
        self._hold_stopping(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("sparsity", _share_of_zeros(trainer, pl_module))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hold_stopping(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._release()
        _zero(self._weights(pl_module))  # weights may have been averaged
        if self._amount < self.amounts[-1] and not _is_trial(trainer):
            warnings.warn(
                f"Prune: training ended after {trainer.current_epoch} epochs with {self._amount:.1%} pruned; "
                f"{self.amounts[-1]:.1%} come with epoch {self.epochs[-1]}",
                stacklevel=2,
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release()

    def _tighten(self, trainer: Trainer, pl_module: LightningModule, amount: float) -> None:
        found = sparsify_(pl_module, replace(self.sparsity, amount=amount, steps=None), self.filter_fn)
        new = {name: ~_mask(pl_module, name).cpu() for name in found.pruned}
        finalize_masks_(pl_module)
        # All ranks hold the same weights, but unlike GPUs may round their magnitudes apart.
        new = trainer.strategy.broadcast(new)
        self._pruned = {name: pruned | self._pruned.get(name, pruned) for name, pruned in new.items()}
        self._amount = amount
        self._hold(trainer, pl_module)

    def _weights(self, pl_module: LightningModule) -> list[tuple[Tensor, Tensor]]:
        """Each pruned layer's weight, and where it is zero."""
        weights = {name: pl_module.get_submodule(name).weight for name in self._pruned}
        return [(weight, self._pruned[name].to(weight.device)) for name, weight in weights.items()]  # type: ignore

    def _hold(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Zero what is pruned, now and after each step; without gradients it weighs in no norm either."""
        self._release()
        weights = self._weights(pl_module)
        _zero(weights)
        self._handles = [
            optimizer.register_step_post_hook(lambda *_: _zero(weights)) for optimizer in trainer.optimizers
        ]
        for weight, pruned in weights:
            if weight.requires_grad:
                self._handles.append(weight.register_hook(lambda grad, at=pruned: grad.masked_fill(at, 0)))

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _hold_stopping(self, trainer: Trainer) -> None:
        """While zeros are still to come, scores that get worse are no reason to stop."""
        if self._amount < self.amounts[-1]:
            _forget_stops(trainer)


def _checked(epochs: Iterable[int]) -> tuple[int, ...]:
    found = tuple(epochs) if isinstance(epochs, Iterable) else ()
    ascending = all(isinstance(e, int) and e >= 0 for e in found) and list(found) == sorted(set(found))
    if not found or not ascending:
        raise ValueError(
            f"Prune: epochs is {epochs!r}, accepted are ascending whole numbers from 0, such as range(2, 8)"
        )
    return found


def _amounts(sparsity: Sparsity, count: int) -> tuple[float, ...]:
    """What to prune up to at each step."""
    if sparsity.steps is not None:
        if len(sparsity.steps) != count:
            raise ValueError(f"Prune: epochs are {count}, accepted are as many as steps={sparsity.steps}")
        return sparsity.steps
    if sparsity.pattern == "2:4" and count > 1:
        raise ValueError(f"Prune: epochs are {count}, accepted for 2:4 is one: it has no smaller amounts")
    least = 0.5 if sparsity.pattern == "tile+2:4" else 0.0
    return tuple(sparsity.amount + (least - sparsity.amount) * (1 - (i + 1) / count) ** 3 for i in range(count))


def _is_trial(trainer: Any) -> bool:
    """Whether a run of a few batches only looks for errors; it is one epoch long whatever was asked."""
    return bool(trainer.fast_dev_run)


def _mask(model: nn.Module, name: str) -> Tensor:
    mask = mask_of(model.get_submodule(name))
    assert mask is not None
    return mask.mask


def _packed(pruned: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(pruned.numpy()))


def _unpacked(shape: list[int], bits: Tensor) -> Tensor:
    return torch.from_numpy(np.unpackbits(bits.cpu().numpy(), count=math.prod(shape)).astype(bool)).view(shape)


def _share_of_zeros(trainer: Any, pl_module: LightningModule) -> float:
    """In the layers that any of the trainer's callbacks prunes; each of these logs the same."""
    names = {name for callback in trainer.callbacks if isinstance(callback, Prune) for name in callback._pruned}
    weights: list[Any] = [pl_module.get_submodule(name).weight for name in sorted(names)]
    return sum(int((weight == 0).sum()) for weight in weights) / max(sum(weight.numel() for weight in weights), 1)


@torch.no_grad()
def _zero(weights: list[tuple[Tensor, Tensor]]) -> None:
    for weight, pruned in weights:
        weight.masked_fill_(pruned, 0)


def _worst(callback: Any) -> Tensor:
    return torch.tensor(math.inf if callback.mode == "min" else -math.inf)


def _forget_best(trainer: Trainer) -> None:
    """To each ModelCheckpoint, whatever it kept is now as bad as can be, so that it replaces that first."""
    callbacks: list[Any] = trainer.checkpoint_callbacks  # type: ignore[assignment]
    for callback in callbacks:
        if getattr(callback, "monitor", None) is not None:
            worst = _worst(callback)
            callback.best_k_models = dict.fromkeys(callback.best_k_models, worst)
            callback.kth_value = callback.best_model_score = worst
            callback.best_model_path = ""
    _forget_stops(trainer)


def _forget_stops(trainer: Trainer) -> None:
    for callback in trainer.early_stopping_callbacks:
        callback.wait_count, callback.best_score = 0, _worst(callback)
