"""Small networks whose channels meet in one way each."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())


class Growing(nn.Module):
    """BatchNorm before convolution on all that came before, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 32)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(32 * i), nn.ReLU(), nn.Conv2d(32 * i, 32, 3, 1, 1, bias=False))
            for i in (1, 2, 3)
        )
        self.norm, self.head = nn.BatchNorm2d(128), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.head(F.relu(self.norm(x)).mean((2, 3)))


class SmallUNet(nn.Module):
    """Down, up by a transposed convolution, and joined with what was there before."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.low = conv_bn(3, 32), conv_bn(32, 64)
        self.up = nn.ConvTranspose2d(64, 32, 2, 2)
        self.join, self.head = conv_bn(64, 32), nn.Conv2d(32, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return self.head(self.join(torch.cat([x, F.relu(self.up(self.low(F.max_pool2d(x, 2))))], 1)))


class Flattening(nn.Module):
    """Linear layers on flattened pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 32, 3), nn.PReLU(32), nn.MaxPool2d(2))
        self.fc1, self.norm, self.fc2 = nn.Linear(32 * 49, 64), nn.BatchNorm1d(64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.norm(self.fc1(self.conv(x).flatten(1)))))


class Squeezing(nn.Module):
    """Channels weighted by what two linear layers make of their means."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 64, 3), nn.InstanceNorm2d(64, affine=True)
        self.down, self.act, self.up = nn.Linear(64, 32), nn.PReLU(), nn.Linear(32, 64)
        self.head = nn.Conv2d(64, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        return self.head(x * self.up(self.act(self.down(x.mean((2, 3))))).sigmoid()[:, :, None, None])


class Gated(nn.Module):
    """The first half of a layer's outputs times the second."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 64, 3), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.conv(F.relu(self.stem(x))).chunk(2, 1)
        return self.head(F.relu(a) * b)


class Grouped(nn.Module):
    """A convolution of two groups between others."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped = conv_bn(3, 64), nn.Conv2d(64, 64, 3, groups=2)
        self.head = nn.Conv2d(64, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.grouped(self.stem(x))))


class Shuffling(Grouped):
    """The same, with channels in another order before the last layer."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.grouped(self.stem(x)))
        n, c, h, w = x.shape
        return self.head(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


class Attending(nn.Module):
    """A block of a transformer with attention written out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Linear(16, 32), nn.Parameter(torch.randn(1, 6, 32))
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down, self.head = nn.Linear(32, 128), nn.Linear(128, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.position
        n, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, t, 3, 2, 16).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c))
        return self.head((x + self.down(F.gelu(self.up(self.norm2(x))))).mean(1))


class Mixing(nn.Module):
    """All that keeps channels where they are: norms over them, the model's input, tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.back = nn.Conv2d(32, 32, 3, 1, 1)
        self.first, self.norm = nn.Conv2d(64, 64, 3, 1, 1), nn.GroupNorm(8, 64)
        self.second, self.third = nn.Conv2d(64, 64, 3), nn.Conv2d(64, 64, 3)
        self.tied1, self.tied2, self.head = nn.Conv2d(64, 64, 3), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 4, 1)
        self.tied2.weight = self.tied1.weight
        self.unused = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(torch.cat([x, x + self.back(x)], 1)))
        x = self.third(F.normalize(self.second(x), dim=1))
        return self.head(self.tied2(F.relu(self.tied1(F.relu(x)))))
