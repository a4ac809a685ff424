"""Training, fine-tuning and evaluation of the demo's models on MNIST."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
    """MNIST as tensors on a device: batches of shifted training digits, and the test digits.

    Args:
        mnist: the arrays.
        device: where the tensors live.
        seed: of the order and the shifts of the training digits.
    """

    def __init__(self, mnist: Mnist, device: torch.device, seed: int = 0) -> None:
        self.device = device
        self.generator = torch.Generator().manual_seed(seed)
        padded = F.pad(torch.from_numpy(mnist.train_images), (SHIFT, SHIFT, SHIFT, SHIFT))
        self.train_padded = padded.to(device)  # uint8 [N, 32, 32]
        self.train_labels = torch.from_numpy(mnist.train_labels).to(device, torch.int64)
        self.test_images = _normalised(torch.from_numpy(mnist.test_images).to(device))  # float32 [N, 1, 28, 28]
        self.test_labels = torch.from_numpy(mnist.test_labels).to(device, torch.int64)

    def batches(self, steps: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield `steps` batches of (float32 [N, 1, 28, 28], int64 [N]), reshuffling when the digits are used up."""
        count = len(self.train_labels)
        batch_size = min(batch_size, count)
        order, at = torch.randperm(count, generator=self.generator), 0
        for _ in range(steps):
            if at + batch_size > count:
                order, at = torch.randperm(count, generator=self.generator), 0
            index = order[at : at + batch_size]
            at += batch_size
            shift = torch.randint(0, 2 * SHIFT + 1, (2, batch_size, 1), generator=self.generator)
            yield self._shifted(index.to(self.device), shift.to(self.device)), self.train_labels[index.to(self.device)]

    def centred(self, count: int) -> Tensor:
        """The first `count` training digits, not shifted: float32 [count, 1, 28, 28]."""
        index = torch.arange(min(count, len(self.train_labels)), device=self.device)
        return self._shifted(index, torch.full((2, len(index), 1), SHIFT, device=self.device))

    def _shifted(self, index: Tensor, shift: Tensor) -> Tensor:
        span = torch.arange(SIDE, device=self.device)
        rows, columns = shift[0] + span, shift[1] + span  # [N, 28] each
        return _normalised(self.train_padded[index.view(-1, 1, 1), rows.unsqueeze(2), columns.unsqueeze(1)])


def _normalised(images: Tensor) -> Tensor:
    """uint8 [N, 28, 28] to float32 [N, 1, 28, 28] of mean 0 and variance 1."""
    return images.unsqueeze(1).to(torch.float32).sub_(255 * MEAN).div_(255 * STD)


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
