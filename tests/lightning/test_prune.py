"""Prune in Lightning's own training loop: amounts, zeros that hold, checkpoints, resuming, best scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, StochasticWeightAveraging, WeightAveraging
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import torchaccel as ta
from tests.lightning.digits import Classifier, Digits, Loaded, tensors, trainer, zeros

PRUNED = ("net.1.0", "net.2.0")  # the first layer, the last and those of few channels stay dense


class Watch(pl.Callback):
    """The share of zeros that each forward of the training sees, by epoch."""

    def __init__(self) -> None:
        self.seen: dict[int, set[float]] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        def look(layer: nn.Module, args: tuple) -> None:
            if trainer.training:
                share = round(float((layer.weight == 0).float().mean()), 2)
                self.seen.setdefault(trainer.current_epoch, set()).add(share)

        pl_module.get_submodule("net.1.0").register_forward_pre_hook(look)


class Manual(Classifier):
    """Two optimizer steps a batch, by hand."""

    def __init__(self) -> None:
        super().__init__("Adam", lr=0.01)
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], index: int) -> None:
        optimizer: Any = self.optimizers()
        for _ in range(2):
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
            optimizer.step()


def prune(
    epochs: tuple[int, ...] = (1, 2), amounts: tuple[float, ...] = (0.5, 0.75), **more: Any
) -> ta.lightning.Prune:
    return ta.lightning.Prune(ta.Sparsity("1x4", amounts[-1], steps=amounts), epochs, **more)


@pytest.mark.parametrize(
    ("module", "settings"),
    [
        (Classifier("SGD"), {}),
        (Classifier("Adam", lr=0.01), {"gradient_clip_val": 0.5}),
        (Classifier("RMSprop", lr=0.001), {"precision": "bf16-mixed", "accumulate_grad_batches": 2}),
        (Manual(), {}),
    ],
    ids=["SGD", "Adam", "RMSprop, mixed precision", "by hand"],
)
def test_zeros_hold_with_any_optimizer(module: Classifier, settings: dict[str, Any]) -> None:
    watch = Watch()
    run = trainer(3, prune(), watch, **settings)
    run.fit(module, datamodule=Digits())
    assert watch.seen == {0: {0.0}, 1: {0.5}, 2: {0.75}}
    share = zeros(module)
    assert all(share[name] == pytest.approx(0.75, abs=1e-3) for name in PRUNED)
    assert share["net.0.0"] == share["net.5"] == 0
    assert run.callback_metrics["sparsity"] == pytest.approx(0.75, abs=1e-3)


def test_gradients_of_pruned_weights_weigh_in_no_norm() -> None:
    class Norms(pl.Callback):
        def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
            weight = pl_module.net[1][0].weight
            assert torch.equal(weight.grad == 0, weight == 0)
            self.seen = float((weight == 0).float().mean())

    module, norms = Classifier(), Norms()
    module.net[2].requires_grad_(False)
    trainer(2, prune((0, 1)), norms).fit(module, datamodule=Digits())
    assert norms.seen == pytest.approx(0.75)
    assert zeros(module)["net.2.0"] == pytest.approx(0.75), "what is frozen is pruned too"


def test_what_is_pruned_stays_pruned_where_magnitudes_tie() -> None:
    class Flat(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            self.before = callback.state_dict()["pruned"]
            if trainer.current_epoch == 1:
                with torch.no_grad():
                    pl_module.net[1][0].weight.zero_()

    callback, flat = prune((0, 1), (0.5, 0.75)), Flat()
    trainer(2, callback, flat, limit_train_batches=1).fit(Classifier(), datamodule=Digits())
    first, last = flat.before["net.1.0"][1], callback.state_dict()["pruned"]["net.1.0"][1]
    assert torch.equal(first & last, first) and not torch.equal(first, last)


@pytest.mark.parametrize(
    "average",
    [StochasticWeightAveraging(0.01, swa_epoch_start=1), WeightAveraging()],
    ids=["SWA", "AveragedModel"],
)
def test_averages_of_weights_have_the_zeros_too(average: pl.Callback) -> None:
    module = Classifier()
    trainer(4, average, prune()).fit(module, datamodule=Digits())
    assert all(zeros(module)[name] == pytest.approx(0.75, abs=1e-3) for name in PRUNED)


def test_amounts_rise_along_the_cubic_curve() -> None:
    callback = ta.lightning.Prune(ta.Sparsity("1x4", 0.8), range(2, 6))
    assert callback.amounts == pytest.approx([0.8 * (1 - left**3) for left in (0.75, 0.5, 0.25, 0)])
    assert ta.lightning.Prune(ta.Sparsity("tile+2:4", 0.75), (0, 1)).amounts == pytest.approx([0.71875, 0.75])
    assert ta.lightning.Prune(ta.Sparsity("2:4", 0.5), [3]).amounts == (0.5,)


def test_a_checkpoint_is_one_of_the_plain_module(tmp_path: Path) -> None:
    module = Classifier()
    names = [name for name, _ in module.named_parameters()]
    run = trainer(3, prune(), ModelCheckpoint(tmp_path, save_weights_only=True), enable_checkpointing=True)
    run.fit(module, datamodule=Digits())
    assert [name for name, _ in module.named_parameters()] == names
    run.save_checkpoint(tmp_path / "whole.ckpt")
    for path in tmp_path.iterdir():
        loaded = Classifier.load_from_checkpoint(path, weights_only=True)
        assert all(torch.equal(value, module.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("step", [7, 12, 21, 24, 31], ids=lambda step: f"after {step} of 48 steps")
def test_a_resumed_run_ends_as_one_that_was_not_interrupted(tmp_path: Path, step: int) -> None:
    whole, again = Classifier("Adam", lr=0.01), Classifier("Adam", lr=0.01)
    straight, resumed = prune(), prune()
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=step, save_top_k=-1)
    trainer(4, straight, keep, enable_checkpointing=True).fit(whole, datamodule=Loaded())
    run = trainer(4, resumed)
    run.fit(again, datamodule=Loaded(), ckpt_path=tmp_path / f"step={step}.ckpt", weights_only=True)
    assert run.global_step == 48
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in again.state_dict().items())
    masks, expected = resumed.state_dict()["pruned"], straight.state_dict()["pruned"]
    assert tuple(masks) == PRUNED
    assert all(torch.equal(bits, expected[name][1]) for name, (_, bits) in masks.items())


def test_weights_that_are_zero_by_chance_stay_trainable_after_a_resume(tmp_path: Path) -> None:
    module, again = Classifier(), Classifier()
    run = trainer(2, prune((0,), (0.5,)))
    run.fit(module, datamodule=Digits())
    free = next(index for index in range(64) if module.net[1][0].weight[index, 0, 0, 0] != 0)
    with torch.no_grad():
        module.net[1][0].weight[free, 0, 0, 0] = 0
    run.save_checkpoint(tmp_path / "a.ckpt")
    trainer(3, prune((0,), (0.5,))).fit(again, datamodule=Digits(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert again.net[1][0].weight[free, 0, 0, 0] != 0


def test_the_best_model_is_one_with_all_zeros(tmp_path: Path) -> None:
    """Training without progress: the first epoch stays the best, unless it is forgotten."""
    best = ModelCheckpoint(tmp_path, monitor="val_loss", filename="{epoch}")
    stop = EarlyStopping("val_loss", patience=1)
    run = trainer(9, best, prune((2, 4)), stop, enable_checkpointing=True)
    run.fit(Worse(), datamodule=Digits())
    assert Path(best.best_model_path).name == "epoch=4.ckpt"
    assert zeros(Worse.load_from_checkpoint(best.best_model_path, weights_only=True))["net.1.0"] == pytest.approx(0.75)
    assert run.current_epoch == 6, "it stops after one epoch that is no better, counted from the last step"
    assert [path.name for path in tmp_path.iterdir()] == ["epoch=4.ckpt"]


def test_there_is_no_best_model_until_one_is_saved_after_the_last_step(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, monitor="val_loss", every_n_epochs=3)
    trainer(5, best, prune((3, 4)), enable_checkpointing=True).fit(Worse(), datamodule=Digits())
    assert best.best_model_path == ""


def test_several_callbacks_prune_their_layers_and_resume(tmp_path: Path) -> None:
    def all_three() -> list[pl.Callback]:
        def only(name: str) -> Any:
            return lambda module, own: own == name

        return [
            prune((0, 1), (0.25, 0.5), filter_fn=only("net.1.0")),
            prune((1,), (0.75,), filter_fn=only("net.2.0")),
            prune((0,), (0.75,), filter_fn=only("net.5")),
        ]

    module, again = Classifier(), Classifier()
    run = trainer(2, *all_three())
    run.fit(module, datamodule=Digits())
    run.save_checkpoint(tmp_path / "a.ckpt")
    later = trainer(3, *(resumed := all_three()))
    later.fit(again, datamodule=Digits(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    names = (*PRUNED, "net.5")
    for trained, metrics in ((module, run.callback_metrics), (again, later.callback_metrics)):
        assert [zeros(trained)[name] for name in names] == pytest.approx([0.5, 0.75, 0.75], abs=0.01)
        weights = [trained.get_submodule(name).weight for name in names]
        share = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
        assert metrics["sparsity"] == pytest.approx(share), "of all their layers together"
    assert [tuple(callback.state_dict()["pruned"]) for callback in resumed] == [(name,) for name in names]


class Worse(Classifier):
    def on_validation_epoch_end(self) -> None:
        self.log("val_loss", float(self.current_epoch))

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        self(batch[0])


def test_the_other_package_takes_it_too() -> None:
    class Other(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Classifier().net

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)

    module = Other()
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    run = pytorch_lightning.Trainer(max_epochs=3, callbacks=[prune()], accelerator="cpu", **quiet)
    run.fit(module, DataLoader(TensorDataset(*tensors()), 200))
    assert zeros(module)["net.1.0"] == pytest.approx(0.75)


def test_a_second_fit_begins_anew_and_nothing_stays_on_the_module() -> None:
    module, callback = Classifier(), prune((0,), (0.75,))
    trainer(1, callback).fit(module, datamodule=Digits())
    run = trainer(1)
    run.fit(module, datamodule=Digits())
    assert zeros(module)["net.1.0"] < 0.1, "without the callback the zeros are trained again"
    with pytest.warns(UserWarning, match=r"training ended after 1 epochs with 0.0% pruned; 75.0% come with epoch 2"):
        trainer(-1, prune(), max_steps=12).fit(module, datamodule=Digits())


def test_an_error_in_training_leaves_no_hooks() -> None:
    class Broken(Classifier):
        def on_train_epoch_end(self) -> None:
            raise ZeroDivisionError

    module = Broken()
    with pytest.raises(ZeroDivisionError):
        trainer(2, prune((0, 1))).fit(module, datamodule=Digits())
    assert not module.net[1][0].weight._backward_hooks
    assert not module.optimizers(use_pl_optimizer=False)._optimizer_step_post_hooks


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.9, (1,)), "sparsity is 0.9, accepted is a Sparsity"),
        ((ta.Sparsity("1x4", 0.9), ()), r"epochs is \(\), accepted are ascending whole numbers from 0"),
        ((ta.Sparsity("1x4", 0.9), (3, 3)), r"epochs is \(3, 3\), accepted are ascending"),
        ((ta.Sparsity("1x4", 0.9), (-1, 3)), r"epochs is \(-1, 3\), accepted"),
        ((ta.Sparsity("1x4", 0.9), 4), "epochs is 4, accepted"),
        ((ta.Sparsity("1x4", 0.9, steps=(0.5, 0.9)), (1,)), r"epochs are 1, accepted are as many as steps=\(0.5,"),
        ((ta.Sparsity("2:4", 0.5), (1, 2)), "epochs are 2, accepted for 2:4 is one"),
        ((ta.Sparsity("channel", 0.5), (1,)), "pattern is 'channel', accepted are those of masks.*lightning.optimize"),
    ],
)  # fmt: skip
def test_bad_arguments(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=f"Prune: {message}"):
        ta.lightning.Prune(*arguments)


def test_bad_runs_are_refused_before_training() -> None:
    module = Classifier()
    with pytest.raises(ValueError, match=r"epochs is \(1, 2\), accepted are epochs below max_epochs=2"):
        trainer(2, prune()).fit(module, datamodule=Digits())
    trainer(2, prune(), fast_dev_run=True).fit(module, datamodule=Digits())
    run = trainer(3, prune(filter_fn=lambda m, name: False))
    with pytest.raises(ValueError, match=r"no layer of Classifier can be pruned as 1x4 .*filter_fn left it out"):
        run.fit(module, datamodule=Digits())
    assert run.global_step == 0
    with pytest.raises(ValueError, match="the strategy is FSDPStrategy, accepted are those that keep parameters whole"):
        run = trainer(3)
        run.strategy.__class__ = pl.strategies.FSDPStrategy
        prune().setup(run, module, "fit")
    ta.sparsify_(module, ta.Sparsity("1x4", 0.5))
    with pytest.raises(ValueError, match=r"'net.1.0' has a mask of sparsify_, accepted is a module without"):
        trainer(3, prune()).fit(module, datamodule=Digits())
