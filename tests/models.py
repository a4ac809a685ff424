"""Small models that the tests share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """Two convolutions with BatchNorm and a residual, in the order of ResNet's basic block."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out)
        self.conv2, self.bn2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Conv2d(c_in, c_out, 1, stride) if stride > 1 or c_in != c_out else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x if self.shortcut is None else self.shortcut(x)
        return self.relu(y)


class SmallNet(nn.Module):
    """A stem, max-pooling, two residual blocks and a classifier: all that a ResNet has, small."""

    def __init__(self, channels: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, 1, 1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
        self.pool = nn.MaxPool2d(2)
        self.block1, self.block2 = Residual(channels, channels), Residual(channels, 2 * channels, 2)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(2 * channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.block1(self.pool(self.stem(x))))
        return self.head(self.dropout(x.mean((2, 3))))


class Inverted(nn.Module):
    """A depthwise convolution between two of 1x1, in the order of MobileNetV2's block."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1, widen: int = 3) -> None:
        super().__init__()
        c, act = widen * c_in, nn.ReLU6(inplace=True)
        wide = nn.Conv2d(c_in, c, 1, bias=False), nn.BatchNorm2d(c), act
        depthwise = nn.Conv2d(c, c, 3, stride, 1, groups=c, bias=False), nn.BatchNorm2d(c), act
        self.conv = nn.Sequential(*wide, *depthwise, nn.Conv2d(c, c_out, 1, bias=False), nn.BatchNorm2d(c_out))
        self.shortcut = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


class SmallMobileNet(nn.Module):
    """A stem, three inverted residual blocks, one of grouped convolutions, and a classifier."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True))
        self.blocks = nn.Sequential(Inverted(8, 8), Inverted(8, 14, 2), Inverted(14, 14))
        self.grouped = nn.Sequential(nn.Conv2d(14, 28, 3, 1, 1, groups=2), nn.ReLU6())
        self.head = nn.Linear(28, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(self.grouped(self.blocks(self.stem(x))), 1)
        return self.head(x.flatten(1))


class Branching(nn.Module):
    """Python that torch.fx cannot record: the path depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(y) if y.sum() > -1e9 else y


def settled(model: nn.Module, shape: tuple[int, ...] = (8, 3, 16, 16), seed: int = 0) -> nn.Module:
    """Random weights, BatchNorm statistics of noise, eval mode."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter)
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(shape))
    return model.eval()
