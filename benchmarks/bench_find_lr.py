"""find_lr's rule against those of other tools: how good is the model that is trained with each suggestion?

Networks are trained on scikit-learn's digits with one-cycle schedules whose highest rate runs over a grid, to see which
rate is best; each rule then reads a rate off the losses of the same range tests. The cost of a suggestion is the
validation loss of training with it over that with the grid's best rate. One network is trained already and 80% pruned,
as where `optimize` fine-tunes.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

import torchaccel as ta

sys.path.insert(0, str(Path(__file__).parent))  # also where this runs as a module
from _common import environment

STEPS = 150
GRID = [10 ** (exponent / 4) for exponent in range(-20, 3)]
SEEDS = (0, 1, 2)
OPTIMIZERS: dict[str, Callable[[Any, float], Optimizer]] = {
    "SGD with momentum": lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.9),
    "AdamW": lambda parameters, lr: torch.optim.AdamW(parameters, lr, weight_decay=0.05),
}


class Digits:
    """scikit-learn's digits, 8x8: 1400 to train on, 397 to validate."""

    def __init__(self) -> None:
        images, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(images))
        x = torch.tensor((images[order] - images.mean()) / images.std(), dtype=torch.float32).view(-1, 1, 8, 8)
        y = torch.from_numpy(labels[order])
        self.x, self.y, self.x_val, self.y_val = x[:1400], y[:1400], x[1400:], y[1400:]

    def batches(self, seed: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Without end."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            for index in torch.randperm(len(self.x), generator=generator).split(size)[:-1]:
                yield self.x[index], self.y[index]


class Rows(nn.Module):
    """A transformer that reads the eight rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(8, 32), nn.Parameter(0.02 * torch.randn(8, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x.flatten(1, 2)) + self.place).mean(1))


def mlp() -> nn.Module:
    sizes = ((64, 128), (128, 64))
    hidden = [layer for size in sizes for layer in (nn.Linear(*size), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(64, 10))


def cnn() -> nn.Module:
    def block(c_in: int, c_out: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]

    blocks = [*block(1, 16, 1), *block(16, 32, 2), *block(32, 32, 1)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


@dataclass(frozen=True)
class Problem:
    """A network, an optimizer and a batch size."""

    name: str
    make: Callable[[], nn.Module]
    optimizer: Callable[[Any, float], Optimizer]
    batch_size: int

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return self.make()

    def sweep(self, digits: Digits, seed: int) -> ta.tune.LearningRates:
        model = self.model(seed)
        optimizer = self.optimizer(model.parameters(), 1e-3)
        return ta.tune.find_lr(model, optimizer, digits.batches(seed, self.batch_size), loss)

    def validation_loss(self, digits: Digits, lr: float, seed: int) -> float:
        """After one-cycle training."""
        model = self.model(seed)
        optimizer = self.optimizer(model.parameters(), lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=STEPS)
        for batch, _ in zip(digits.batches(100 + seed, self.batch_size), range(STEPS), strict=False):
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            found = float(loss(model.eval(), (digits.x_val, digits.y_val)))
        return found if math.isfinite(found) else math.inf


def problems(digits: Digits) -> list[Problem]:
    trained = Problem("", cnn, OPTIMIZERS["SGD with momentum"], 64)
    state = _trained(trained, digits)

    def pruned() -> nn.Module:
        model = cnn()
        model.load_state_dict(state)
        ta.sparsify_(model, ta.Sparsity("unstructured", 0.8), filter_fn=lambda module, name: True)
        return model

    networks = {"MLP": mlp, "CNN": cnn, "transformer": Rows, "CNN, trained and 80% pruned": pruned}
    return [
        Problem(f"{name}, {rule}, batch {size}", make, optimizer, size)
        for name, make in networks.items()
        for rule, optimizer in OPTIMIZERS.items()
        for size in (16, 128)
    ]


def _trained(problem: Problem, digits: Digits) -> dict[str, Tensor]:
    model = problem.model(0)
    optimizer = problem.optimizer(model.parameters(), 0.05)
    for batch, _ in zip(digits.batches(0, 64), range(300), strict=False):
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()
    return model.state_dict()


# ---- Other tools' rules, on the average of losses so far that both take.


def _averaged(found: ta.tune.LearningRates) -> np.ndarray:
    """The bias-corrected moving average, until it exceeds four times its lowest."""
    average, averages = 0.0, []
    for step, value in enumerate(found.losses):
        average = 0.98 * average + 0.02 * value
        averages.append(average / (1 - 0.98 ** (step + 1)))
        if not averages[-1] <= 4 * min(averages):
            averages.pop()
            break
    return np.array(averages)


def steepest(found: ta.tune.LearningRates) -> float:
    """PyTorch Lightning's: where the average falls fastest, without the first ten steps and the last."""
    averages = _averaged(found)[10:-1]
    return found.rates[10 + int(np.argmin(np.gradient(averages)))]


def valley(found: ta.tune.LearningRates) -> float:
    """fastai's: half of the way down the longest descent."""
    averages = _averaged(found)
    length = [1] * len(averages)
    for i in range(1, len(averages)):
        length[i] = 1 + max((length[j] for j in range(i) if averages[i] < averages[j]), default=0)
    end = int(np.argmax(length))
    start = end - max(length)
    return found.rates[max(int(start + (end - start) / 2), 0)]


def tenth(found: ta.tune.LearningRates) -> float:
    """fastai's `minimum`: a tenth of the rate with the lowest average."""
    return found.rates[int(np.argmin(_averaged(found)))] / 10


RULES: dict[str, Callable[[ta.tune.LearningRates], float | None]] = {
    "torchaccel: a third of the lowest": lambda found: found.suggestion,
    "fastai: minimum / 10": tenth,
    "PyTorch Lightning: steepest": steepest,
    "fastai: valley": valley,
}


def cost(lr: float, validation: Sequence[float]) -> float:
    """The validation loss at a rate, between the grid's logarithmically, over the best."""
    logs = [math.log(min(value, 10.0)) for value in validation]
    return math.exp(float(np.interp(math.log(lr), np.log(GRID), logs)) - min(logs))


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares the rules by which a learning rate is suggested.")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)  # such small networks gain nothing from more
    digits, rows = Digits(), []
    for problem in problems(digits):
        grid = [statistics.median(problem.validation_loss(digits, lr, seed) for seed in SEEDS[:2]) for lr in GRID]
        best = GRID[int(np.argmin(grid))]
        sweeps = [problem.sweep(digits, seed) for seed in SEEDS]
        row: dict[str, Any] = {"problem": problem.name, "best": best, "loss": min(grid), "rules": {}}
        for name, rule in RULES.items():
            suggested = [rule(sweep) for sweep in sweeps]
            row["rules"][name] = {
                "rates": suggested,
                "cost": [None if lr is None else cost(lr, grid) for lr in suggested],
            }
        rows.append(row)
        told = "  ".join(f"{name.partition(':')[0]} {told['rates'][0] or 0:.2g}" for name, told in row["rules"].items())
        print(f"{problem.name}: best {best:.2g} (loss {min(grid):.3f}); suggested {told}", flush=True)
    print(f"{'rule':36s} cost: mean  median  90th percentile; no suggestion")
    for name in RULES:
        costs = [value for row in rows for value in row["rules"][name]["cost"]]
        given = [value for value in costs if value is not None]
        figures = statistics.mean(given), statistics.median(given), float(np.quantile(given, 0.9))
        print(f"{name:36s}" + "".join(f"  {value:7.2f}" for value in figures) + f"  {len(costs) - len(given)}")
    if options.json:
        options.json.write_text(json.dumps({"environment": environment(), "grid": GRID, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
