"""Training, fine-tuning and evaluation of the demo's models on MNIST."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchaccel import data
from torchaccel.demo.mnist import SIDE, Mnist

MEAN, STD = 0.1307, 0.3081  # of MNIST's training pixels, as fractions of full ink
SHIFT = 2  # pixels; images move by up to this much in each direction
EVALUATION_BATCH = 500
SETTLING_BATCHES = 4

OnStep = Callable[[int, int, float], None]  # (step, steps, loss)


@dataclass(frozen=True)
class Schedule:
    """One run of one-cycle SGD: how many images are shown, and the highest learning rate."""

    images: int
    learning_rate: float
    batch_size: int = 128
    warm_up: float = 0.25  # share of the steps in which the learning rate rises
    momentum: float = 0.9
    weight_decay: float = 5e-4

    @property
    def steps(self) -> int:
        return max(1, round(self.images / self.batch_size))


class Digits:
    """MNIST for training and testing: batches of shifted training digits, and the test digits as tensors on a device.

    Args:
        mnist: the arrays.
        device: where tensors live and batches go.
        seed: of the order and the shifts of the training digits.
    """

    def __init__(self, mnist: Mnist, device: torch.device, seed: int = 0) -> None:
        self.device, self.seed = device, seed
        self.source = data.Arrays(mnist.train_images, mnist.train_labels.astype(np.int64))
        self.train_images = torch.from_numpy(mnist.train_images)
        self.test_images = _normalised(torch.from_numpy(mnist.test_images).to(device))  # float32 [N, 1, 28, 28]
        self.test_labels = torch.from_numpy(mnist.test_labels).to(device, torch.int64)
        self._loaders: dict[int, data.cuda_prefetch] = {}

    def batches(self, steps: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield `steps` batches of (float32 [N, 1, 28, 28], int64 [N]), reshuffling when the digits are used up."""
        loader, done = self._loader(min(batch_size, len(self.source))), 0
        while done < steps:
            for images, labels in loader:
                yield images, labels
                done += 1
                if done == steps:
                    return

    def _loader(self, batch_size: int) -> data.cuda_prefetch:
        if batch_size not in self._loaders:
            recipe = (data.RandomCrop(SIDE, padding=SHIFT), data.Normalize(MEAN, STD))
            # One thread: such small images take a hundredth of the time of a training step.
            loader = data.Loader(
                self.source, batch_size, recipe, shuffle=True, seed=self.seed, threads=1, drop_last=True
            )
            self._loaders[batch_size] = data.cuda_prefetch(loader, self.device)
        return self._loaders[batch_size]

    def centred(self, count: int) -> Tensor:
        """The first `count` training digits, not shifted: float32 [count, 1, 28, 28]."""
        return _normalised(self.train_images[:count].to(self.device))


def _normalised(images: Tensor) -> Tensor:
    """uint8 [N, 28, 28] to float32 [N, 1, 28, 28] of mean 0 and variance 1."""
    return images.unsqueeze(1).to(torch.float32).div_(255).sub_(MEAN).div_(STD)


def train(model: nn.Module, digits: Digits, schedule: Schedule, on_step: OnStep | None = None) -> None:
    """Train a classifier in place with one cycle of SGD, and leave it in evaluation mode.

    Args:
        model: from [N, 1, 28, 28] to [N, 10]; on the device of `digits`.
        digits: where the batches come from.
        schedule: for how long and how fast.
        on_step: called after each step with its number from 1, the number of steps and the loss.

    Source: Smith, Topin, "Super-Convergence", 2017 (arXiv:1708.07120), for the one cycle of the learning rate.
    """
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        parameters,
        lr=schedule.learning_rate,
        momentum=schedule.momentum,
        nesterov=True,
        weight_decay=schedule.weight_decay,
    )  # fused=True is slower here: it copies channels_last weights
    for step, (x, target) in enumerate(digits.batches(schedule.steps, schedule.batch_size)):
        optimizer.param_groups[0]["lr"] = schedule.learning_rate * _cycle(step, schedule)
        loss = F.cross_entropy(model(x.contiguous(memory_format=torch.channels_last)), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if on_step is not None:
            on_step(step + 1, schedule.steps, loss.item())
    _settle_batch_norm(model, digits)
    model.eval()


@torch.no_grad()
def _settle_batch_norm(model: nn.Module, digits: Digits) -> None:
    """Replace the running statistics, which lag behind the weights, by plain averages over some batches."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
    for x, _ in digits.batches(SETTLING_BATCHES, EVALUATION_BATCH):
        model(x.contiguous(memory_format=torch.channels_last))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _cycle(step: int, schedule: Schedule) -> float:
    """The learning rate of a step as a share of the highest: up in a line, then down to zero in a line."""
    at = (step + 1) / (schedule.steps + 1)
    return at / schedule.warm_up if at < schedule.warm_up else (1 - at) / (1 - schedule.warm_up)


@torch.inference_mode()
def accuracy(model: nn.Module, digits: Digits) -> float:
    """The share of the test digits that a classifier names rightly, 0..1."""
    right = 0
    for x, target in zip(
        digits.test_images.split(EVALUATION_BATCH), digits.test_labels.split(EVALUATION_BATCH), strict=True
    ):
        right += int((model(x).argmax(1) == target).sum())
    return right / len(digits.test_labels)
