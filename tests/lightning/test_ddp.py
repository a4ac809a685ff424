"""Two processes on gloo: Prune's masks and the loader's shares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

import torchaccel as ta
from tests.lightning.digits import Classifier, Loaded, trainer, zeros


class Record(pl.Callback):
    """Writes down what each rank trained on, and what it ended with."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen = folder, []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.seen += [image.sum().item() for image in batch[0]]

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        state = {name: value.clone() for name, value in pl_module.state_dict().items()}
        torch.save({"seen": self.seen, "state": state}, self.folder / f"{trainer.global_rank}.pt")


def test_two_processes(tmp_path: Path) -> None:
    module = Classifier()
    prune = ta.lightning.Prune(ta.Sparsity("1x4", 0.75), (0, 1))
    run = trainer(2, prune, Record(tmp_path), devices=2, strategy="ddp_spawn")
    run.fit(module, datamodule=Loaded())
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    names = [name for name, _ in module.named_parameters()]
    assert all(torch.equal(ranks[0]["state"][name], ranks[1]["state"][name]) for name in names)
    assert all(torch.equal(ranks[0]["state"][name], module.state_dict()[name]) for name in names)
    assert zeros(module)["net.1.0"] == pytest.approx(0.75)

    images = Loaded()
    images.setup("fit")
    once = sorted(image.sum().item() for image in images.train.tensors[0])
    for epoch in range(2):
        both = [value for rank in ranks for value in rank["seen"][600 * epoch : 600 * (epoch + 1)]]
        assert [x * 0.37 + 64 * 0.3 for x in sorted(both)] == pytest.approx([x * 240 / 255 for x in once], rel=1e-4)
