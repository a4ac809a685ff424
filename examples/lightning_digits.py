"""PyTorch Lightning, start to end: prune while training, then optimize by the module's own data and metric.

pip install pytorch-lightning scikit-learn
python examples/lightning_digits.py
"""

from __future__ import annotations

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset, random_split

import torchaccel as ta


class Classifier(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
            nn.Conv2d(64, 64, 3, 2, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
            nn.Flatten(), nn.Linear(1024, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)


def main() -> None:
    pl.seed_everything(0)
    digits = load_digits()
    data = TensorDataset(torch.tensor(digits.images[:, None] / 16, dtype=torch.float32), torch.tensor(digits.target))
    train, val = random_split(data, (1200, 597))
    images = pl.LightningDataModule.from_datasets(train, val, batch_size=64)

    best = ModelCheckpoint("lightning-out", monitor="val_acc", mode="max", filename="best")
    prune = ta.lightning.Prune(ta.Sparsity("1x4", 0.8), epochs=range(2, 6))
    trainer = pl.Trainer(max_epochs=10, callbacks=[prune, best], logger=False, enable_progress_bar=False)
    trainer.fit(Classifier(), datamodule=images)

    module = Classifier.load_from_checkpoint(best.best_model_path)  # a plain module: the zeros are in its weights
    result = ta.lightning.optimize(module, images, metric="val_acc")
    print(result.report.summary())
    result.report.to_tensorboard("lightning-out/tensorboard")
    ta.save(result.model, "lightning-out/model.safetensors")
    trainer.validate(ta.lightning.with_model(module, result.model), datamodule=images)


if __name__ == "__main__":
    main()
