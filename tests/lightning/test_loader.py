"""torchaccel's loader as a LightningModule's: epochs, and what a resumed run is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import Tensor, nn

import torchaccel as ta
from tests.lightning.digits import trainer

DIGITS = load_digits().images[:60].astype(np.uint8) * 15


class Reader(pl.LightningModule):
    """Notes the samples of each batch."""

    def __init__(self, wrap: type | None = None) -> None:
        super().__init__()
        self.weight, self.wrap = nn.Parameter(torch.zeros(1)), wrap
        self.seen: list[tuple[int, list[int]]] = []

    def _loader(self, **settings: Any) -> Any:
        loader = ta.data.Loader(ta.data.Arrays(DIGITS, np.arange(60)), 10, threads=1, **settings)
        return loader if self.wrap is None else self.wrap(loader)

    def train_dataloader(self) -> Any:
        return self._loader(recipe=[ta.data.Normalize(0.5, 0.5)], shuffle=True, seed=3)

    def val_dataloader(self) -> Any:
        return self._loader()

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        self.seen.append((self.current_epoch, batch[1].tolist()))
        return self.weight * batch[0].mean()

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self.log("samples", float(len(batch[1])), reduce_fx="sum")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("wrap", [None, ta.data.cuda_prefetch])
def test_each_epoch_has_an_order_of_its_own(wrap: type | None) -> None:
    module = Reader(wrap)
    run = trainer(3)
    run.fit(module)
    epochs = [[i for epoch, batch in module.seen if epoch == n for i in batch] for n in range(3)]
    assert all(sorted(order) == list(range(60)) for order in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert run.callback_metrics["samples"] == 60
    alone = module.train_dataloader()
    alone.set_epoch(2)
    assert [i for _, labels in alone for i in labels.tolist()] == epochs[2], "the order is that of Lightning's epoch"


@pytest.mark.parametrize(
    "when", [{"every_n_train_steps": 2}, {"save_on_train_epoch_end": True}, {"save_on_train_epoch_end": False}], ids=str
)
def test_a_resumed_run_is_given_what_would_have_followed(tmp_path: Path, when: dict[str, Any]) -> None:
    whole = Reader()
    keep = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, **when)
    trainer(3, keep, enable_checkpointing=True).fit(whole)
    steps = sorted(int(path.stem.removeprefix("step=")) for path in tmp_path.iterdir())
    assert steps == ([*range(2, 19, 2)] if "every_n_train_steps" in when else [6, 12, 18])
    for step in steps[:-1]:
        again = Reader()
        trainer(3).fit(again, ckpt_path=tmp_path / f"step={step}.ckpt", weights_only=False)
        assert again.seen == whole.seen[step:], f"after step {step}"
