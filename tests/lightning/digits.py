"""A LightningModule and a LightningDataModule on scikit-learn's digits, as users write them."""

from __future__ import annotations

import lightning.pytorch as pl
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import torchaccel as ta


def tensors() -> tuple[Tensor, Tensor]:
    """float32 [1797, 1, 8, 8] within 0..1, int64 [1797]."""
    digits = load_digits()
    return torch.tensor(digits.images, dtype=torch.float32).div(16).unsqueeze(1), torch.tensor(digits.target)


def network() -> nn.Module:
    def block(c_in: int, c_out: int, stride: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1), nn.BatchNorm2d(c_out), nn.ReLU())

    return nn.Sequential(
        block(1, 32, 1), block(32, 64, 2), block(64, 64, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
    )  # fmt: skip


class Digits(pl.LightningDataModule):
    """1,200 digits to train on, 597 to validate on; pixels are scaled after the transfer, as on a GPU."""

    def __init__(self, batch_size: int = 100) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        x, y = tensors()
        if stage == "fit":
            self.train = TensorDataset(x[:1200], y[:1200])
        self.val = TensorDataset(x[1200:], y[1200:])

    def on_after_batch_transfer(self, batch: list[Tensor], dataloader_idx: int) -> list[Tensor]:
        x, y = batch
        return [x.sub(0.3).div(0.37), y]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, 200)


class Loaded(Digits):
    """The same digits from torchaccel's loader, which goes on where a checkpoint was written."""

    def train_dataloader(self) -> ta.data.Loader:
        digits = load_digits()
        source = ta.data.Arrays(digits.images[:1200].astype(np.uint8) * 15, digits.target[:1200])
        where = {"rank": self.trainer.global_rank, "world": self.trainer.world_size}
        return ta.data.Loader(source, self.batch_size, [ta.data.Normalize(0.0, 1.0)], shuffle=True, threads=1, **where)


class Classifier(pl.LightningModule):
    """Logs val_acc and val_loss; `direct` calls the network past `forward`."""

    def __init__(self, optimizer: str = "SGD", direct: bool = False, lr: float = 0.05) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = network()
        self.direct = direct

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        x, y = batch
        guess = self.net(x) if self.direct else self(x)
        self.log("val_acc", (guess.argmax(1) == y).float().mean())
        self.log("val_loss", F.cross_entropy(guess, y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        name = self.hparams.optimizer
        settings = {"momentum": 0.9} if name == "SGD" else {}
        return getattr(torch.optim, name)(self.parameters(), lr=self.hparams.lr, weight_decay=1e-3, **settings)


def trainer(epochs: int, *callbacks: pl.Callback, **settings: object) -> pl.Trainer:
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    defaults = {"accelerator": "cpu", "devices": 1, "enable_checkpointing": False}
    return pl.Trainer(max_epochs=epochs, callbacks=list(callbacks), **quiet | defaults | settings)


def zeros(module: nn.Module) -> dict[str, float]:
    """The share of zeros of each convolution and linear layer."""
    layers = {name: m.weight for name, m in module.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    return {name: float((weight.detach() == 0).float().mean()) for name, weight in layers.items()}
