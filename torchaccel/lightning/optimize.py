"""ta.lightning.optimize: from a trained LightningModule to a faster model, with its own data, metric and training."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn

from torchaccel.compress import Int8Dynamic, Int8Static, Int8WeightOnly, Sparsity
from torchaccel.lightning._package import package_of
from torchaccel.workflow.optimize import optimize as optimize_model
from torchaccel.workflow.result import Result

if TYPE_CHECKING:
    from pytorch_lightning import LightningDataModule, LightningModule, Trainer

M = TypeVar("M", bound="LightningModule")


def optimize(
    module: LightningModule,
    datamodule: LightningDataModule | None = None,
    *,
    metric: str | None = None,
    mode: str = "max",
    part: str = "",
    train_dataloaders: Any = None,
    val_dataloaders: Any = None,
    example_inputs: tuple[Tensor, ...] | None = None,
    sparsity: Sparsity | None = None,
    int8: Int8Static | Int8Dynamic | Int8WeightOnly | None = Int8Static(),  # noqa: B008 (frozen)
    finetune: Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    max_drop: float = 0.005,
    min_speedup: float = 1.0,
) -> Result:
    """`torchaccel.optimize` on a LightningModule: calibrated, judged and fine-tuned as Lightning runs it.

    Calibration takes what reaches `forward` when `validation_step` runs on training batches, after all hooks of the
    data; the accuracy gate, what `Trainer.validate` logs; fine-tuning is `Trainer.fit` after each pruning step.

    Args:
        module: trained; it stays as it is. It is optimized for the device it is on: Lightning leaves it on the CPU.
        datamodule: as in `Trainer.fit`, like `train_dataloaders` and `val_dataloaders`; without any of them the
            module's own loaders serve.
        metric: that validation logs, such as "val_acc"; without it there is no accuracy gate.
        mode: "max" where a higher metric is better, or "min"; the report then shows the metric's negative.
        part: the submodule to optimize, such as "net", where `validation_step` calls `self.net(x)`; "" is the whole
            `forward`, for `self(x)`.
        train_dataloaders: batches to calibrate and fine-tune on; `val_dataloaders` calibrate where these are missing.
        val_dataloaders: batches to validate on.
        example_inputs: as in `torchaccel.optimize`; without them the module's `example_input_array`, then the first
            batch.
        sparsity: as in `torchaccel.optimize`, like `int8`, `max_drop` (in the metric's unit) and `min_speedup`. The
            batches of `Int8Static` are held in memory.
        finetune: settings of the Trainer that fine-tunes, such as {"max_epochs": 2}; the module's own optimizers and
            hooks are at work.
        trainer: settings of every Trainer, such as {"limit_val_batches": 50}; by default each has one device, no
            logger, no checkpoints and no progress bar.

    Returns:
        A Result: its `model` takes the inputs of `forward` (or of `part`); `with_model` puts it to work in Lightning.

    Raises:
        ValueError: an argument that is not as described, or a validation that does not call what is optimized.
        RuntimeError: validation or fine-tuning raised; the message names it and the cause is attached.

    Equivalent to `torchaccel.optimize(module, (x,), calibration=..., evaluate=..., finetune=...)`.
    """
    if mode not in ("max", "min"):
        raise ValueError(f"mode: given {mode!r}, accepted are max and min")
    for name, settings in (("finetune", finetune), ("trainer", trainer)):
        if settings is not None and not isinstance(settings, Mapping):
            given = type(settings).__name__
            raise ValueError(f'{name}: given {given}, accepted are settings of a Trainer, such as {{"max_epochs": 2}}')
    runs = _Runs(module, part, datamodule, train_dataloaders, val_dataloaders, dict(trainer or {}))
    batches = runs.inputs(int8.batches if isinstance(int8, Int8Static) else 1)
    examples = _examples(module, part, example_inputs)
    return optimize_model(
        module.get_submodule(part),
        batches[0] if examples is None else examples,
        sparsity=sparsity,
        int8=int8,
        calibration=batches if isinstance(int8, Int8Static) else None,
        evaluate=None if metric is None else lambda model: runs.validate(model, metric, mode),
        finetune=None if finetune is None else lambda model, step: runs.fit(model, finetune),
        max_drop=max_drop,
        min_speedup=min_speedup,
    )


def with_model(module: M, model: nn.Module, part: str = "") -> M:
    """A copy of a LightningModule in which `model` does the work of `forward` or of a submodule, for inference.

    `Trainer.validate`, `test` and `predict` take it. Its state dict holds no weights of `model`: `torchaccel.save`
    does that. Nor does the copy move `model` between devices.

    Args:
        module: stays as it is.
        model: what `optimize` made of it.
        part: as in `optimize`.

    Raises:
        ValueError: `module` is no LightningModule, or has no such part.

    Equivalent to a subclass whose `forward` is `return model(x)`.
    """
    _check_part(module, part)
    copied = copy.deepcopy(module)
    if part:
        copied.set_submodule(part, _Caller(model), strict=True)
    else:
        copied.forward = model.__call__  # type: ignore[method-assign]
    return copied


class _Caller(nn.Module):
    """Calls a model that is no child of it: a Trainer moves its module to the CPU when it is done."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.forward = model.__call__


@dataclass
class _Runs:
    """Runs a module, or a copy of it with another model in its place, as Lightning does."""

    module: Any
    part: str
    datamodule: Any
    train_dataloaders: Any
    val_dataloaders: Any
    settings: dict[str, Any]
    _validating: Trainer | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        _check_part(self.module, self.part)
        if self.datamodule is not None and not isinstance(self.datamodule, package_of(self.module).LightningDataModule):
            given = type(self.datamodule).__name__
            raise ValueError(
                f"datamodule: given {given}, accepted is a LightningDataModule; loaders are train_dataloaders"
            )

    def trainer(self, **settings: Any) -> Trainer:
        device = self.module.device
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        where = {"accelerator": "cpu", "devices": 1}
        if device.type == "cuda":
            where = {"accelerator": "gpu", "devices": [device.index or 0]}
        # Tensors of inference mode could not be used outside of it.
        return package_of(self.module).Trainer(**quiet | where | {"inference_mode": False} | self.settings | settings)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Without lines about the hardware for each of many runs, or advice about training batches that calibrate."""
        logger = logging.getLogger(package_of(self.module).__name__)
        level = logger.level
        logger.setLevel(logging.WARNING)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*sampler has shuffling enabled")
                yield
        finally:
            logger.setLevel(level)

    def inputs(self, count: int | None) -> list[tuple[Tensor, ...]]:
        """What the part to optimize is called with when training batches are validated; None takes all of them."""
        seen: list[tuple[Tensor, ...]] = []
        copied = copy.deepcopy(self.module)

        def record(module: nn.Module, args: tuple, kwargs: dict) -> None:
            if kwargs or not args or not all(isinstance(x, Tensor) for x in args):
                given = ", ".join([*(type(x).__name__ for x in args), *(f"{key}=" for key in kwargs)])
                raise ValueError(f"{_called(self.part)}({given}): accepted are positional tensors")
            if count is None or len(seen) < count:
                seen.append(tuple(x.detach().clone() for x in args))

        copied.get_submodule(self.part).register_forward_pre_hook(record, with_kwargs=True)
        loaders = self.train_dataloaders if self.train_dataloaders is not None else self.val_dataloaders
        datamodule = self.datamodule
        if loaders is None:
            if datamodule is not None:
                datamodule.prepare_data()
                datamodule.setup("fit")
                datamodule = copy.copy(datamodule)
            source = copied if datamodule is None else datamodule
            source.val_dataloader = source.train_dataloader
        limit = 1.0 if count is None else count
        with self.quiet():
            self.trainer(limit_val_batches=limit).validate(copied, loaders, verbose=False, datamodule=datamodule)
        if not seen:
            raise ValueError(
                f"part: given {self.part!r}, but {type(self.module).__name__}.validation_step never calls "
                f"{_called(self.part)}; accepted is the submodule that it calls, or '' for self(x)"
            )
        return seen

    def validate(self, model: nn.Module, metric: str, mode: str) -> float:
        """The metric with another model in place, higher is better."""
        copied = with_model(self.module, model, self.part)
        with self.quiet():
            self._validating = self._validating or self.trainer()
            self._validating.validate(copied, self.val_dataloaders, verbose=False, datamodule=self.datamodule)
        logged = self._validating.callback_metrics
        if metric not in logged:
            raise ValueError(
                f"metric: given {metric!r}, accepted is what validation logs: {', '.join(logged) or 'nothing'}"
            )
        return float(logged[metric]) * (1 if mode == "max" else -1)

    def fit(self, model: nn.Module, settings: Mapping[str, Any]) -> None:
        """Train a pruned copy of the part in place."""
        device = next(model.parameters()).device
        trained: Any = model
        if self.part:
            trained = copy.deepcopy(self.module)
            trained.set_submodule(self.part, model, strict=True)
        with self.quiet():
            trainer = self.trainer(**copy.deepcopy(dict(settings)))
            trainer.fit(trained.train(), self.train_dataloaders, self.val_dataloaders, datamodule=self.datamodule)
        trained.trainer = None  # with one, self.log in forward is an error outside of its loops
        model.to(device)


def _called(part: str) -> str:
    return f"self.{part}" if part else "self"


def _check_part(module: object, part: str) -> None:
    package_of(module)
    assert isinstance(module, nn.Module)
    if part not in (names := [name for name, _ in module.named_modules()]):
        children = ", ".join(repr(name) for name in names if name and "." not in name)
        raise ValueError(f"part: given {part!r}, accepted is the name of a submodule, such as {children}")


def _examples(module: Any, part: str, given: tuple[Tensor, ...] | None) -> tuple[Tensor, ...] | None:
    """The example inputs that the caller or the module gives, on the module's device; None without any."""
    found = given
    if found is None and not part:
        found = module.example_input_array
        found = (found,) if isinstance(found, Tensor) else found
    if not isinstance(found, tuple) or not all(isinstance(x, Tensor) for x in found):
        return found  # None, or what `optimize` refuses
    return tuple(x.to(module.device) for x in found)
