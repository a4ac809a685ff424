"""Networks that the benchmarks time, with torchvision's parameter names where it has them, so that checkpoints load."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from torchaccel.demo import resnet18, resnet50

CLASSES = 1000


def _conv_bn(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1, act: type[nn.Module] = nn.ReLU
) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out_channels), act(inplace=True)]  # type: ignore[call-arg]


def _named(layers: dict[str, nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


class InvertedResidual(nn.Module):
    """Widen by a 1x1 convolution, filter depthwise, narrow by a 1x1 one; the shortcut joins the narrow ends."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, widen: int) -> None:
        super().__init__()
        wide = in_channels * widen
        layers: list[nn.Module] = []
        if widen > 1:
            layers.append(nn.Sequential(*_conv_bn(in_channels, wide, 1, act=nn.ReLU6)))
        layers.append(nn.Sequential(*_conv_bn(wide, wide, 3, stride, groups=wide, act=nn.ReLU6)))
        self.conv = nn.Sequential(*layers, *_conv_bn(wide, out_channels, 1)[:2])
        self.shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


class MobileNetV2(nn.Module):
    """Sandler et al., 2018 (arXiv:1801.04381): most of its products are 1x1 convolutions around depthwise ones."""

    # widening, output channels, blocks, stride of the first
    STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self) -> None:
        super().__init__()
        channels = 32
        layers: list[nn.Module] = [nn.Sequential(*_conv_bn(3, channels, 3, 2, act=nn.ReLU6))]
        for widen, width, depth, stride in self.STAGES:
            for i in range(depth):
                layers.append(InvertedResidual(channels, width, stride if i == 0 else 1, widen))
                channels = width
        self.features = nn.Sequential(*layers, nn.Sequential(*_conv_bn(channels, 1280, 1, act=nn.ReLU6)))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, CLASSES))

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, H, W] -> [N, 1000]
        return self.classifier(nn.functional.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


class VGG16(nn.Module):
    """Simonyan and Zisserman, 2014 (arXiv:1409.1556): 3x3 convolutions in a row, then three large linear layers."""

    WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)  # 0: pooling

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*self._features())
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        hidden = [nn.Linear(512 * 49, 4096), nn.ReLU(True), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(True)]
        self.classifier = nn.Sequential(*hidden, nn.Dropout(), nn.Linear(4096, CLASSES))

    def _features(self) -> Iterator[nn.Module]:
        channels = 3
        for width in self.WIDTHS:
            if width == 0:
                yield nn.MaxPool2d(2)
                continue
            conv = nn.Conv2d(channels, width, 3, padding=1)
            nn.init.kaiming_normal_(conv.weight)  # without BatchNorm the default lets the signal fade
            yield conv
            yield nn.ReLU(inplace=True)
            channels = width

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, H, W] -> [N, 1000]
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


class DenseLayer(nn.Module):
    """Normalize all that was made before, then a 1x1 and a 3x3 convolution, whose output joins it."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.relu1 = nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True)
        self.conv1, self.norm2, self.relu2 = _conv_bn(in_channels, 4 * growth, 1)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        made = self.conv2(self.relu2(self.norm2(self.conv1(self.relu1(self.norm1(x))))))
        return torch.cat((x, made), 1)


class DenseNet121(nn.Module):
    """Huang et al., 2016 (arXiv:1608.06993): each layer reads all that were made before it."""

    DEPTHS, GROWTH = (6, 12, 24, 16), 32

    def __init__(self) -> None:
        super().__init__()
        channels = 64
        layers: dict[str, nn.Module] = dict(zip(("conv0", "norm0", "relu0"), _conv_bn(3, channels, 7, 2), strict=True))
        layers["pool0"] = nn.MaxPool2d(3, 2, 1)
        for i, depth in enumerate(self.DEPTHS, 1):
            block = {f"denselayer{n + 1}": DenseLayer(channels + n * self.GROWTH, self.GROWTH) for n in range(depth)}
            layers[f"denseblock{i}"] = _named(block)
            channels += depth * self.GROWTH
            if i < len(self.DEPTHS):
                layers[f"transition{i}"] = self._transition(channels)
                channels //= 2
        self.features = _named({**layers, f"norm{len(self.DEPTHS) + 1}": nn.BatchNorm2d(channels)})
        self.classifier = nn.Linear(channels, CLASSES)

    @staticmethod
    def _transition(channels: int) -> nn.Sequential:
        conv = nn.Conv2d(channels, channels // 2, 1, bias=False)
        return _named({"norm": nn.BatchNorm2d(channels), "relu": nn.ReLU(True), "conv": conv, "pool": nn.AvgPool2d(2)})

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, H, W] -> [N, 1000]
        y = nn.functional.relu(self.features(x), inplace=True)
        return self.classifier(nn.functional.adaptive_avg_pool2d(y, 1).flatten(1))


class CSPBlock(nn.Module):
    """Residual blocks on one half of the channels, joined by the other half (Wang et al., 2019, arXiv:1911.11929)."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        half = channels // 2
        self.first, self.beside = (nn.Sequential(*_conv_bn(channels, half, 1, act=nn.SiLU)) for _ in range(2))
        self.blocks = nn.ModuleList(
            nn.Sequential(*_conv_bn(half, half, 1, act=nn.SiLU), *_conv_bn(half, half, 3, act=nn.SiLU))
            for _ in range(depth)
        )
        self.last = nn.Sequential(*_conv_bn(channels, channels, 1, act=nn.SiLU))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        for block in self.blocks:
            y = y + block(y)
        return self.last(torch.cat((y, self.beside(x)), 1))


class CSPDarknet(nn.Module):
    """The backbone of YOLOv5s up to its pooling of several sizes, all SiLU, with a classifier behind it."""

    WIDTHS, DEPTHS = (64, 128, 256, 512), (1, 2, 3, 1)

    def __init__(self) -> None:
        super().__init__()
        layers = _conv_bn(3, 32, 3, 2, act=nn.SiLU)
        for before, width, depth in zip((32, *self.WIDTHS), self.WIDTHS, self.DEPTHS, strict=False):
            layers += [*_conv_bn(before, width, 3, 2, act=nn.SiLU), CSPBlock(width, depth)]
        self.features = nn.Sequential(*layers)
        half = self.WIDTHS[-1] // 2
        self.narrow = nn.Sequential(*_conv_bn(2 * half, half, 1, act=nn.SiLU))
        self.pool, self.wide = nn.MaxPool2d(5, 1, 2), nn.Sequential(*_conv_bn(4 * half, 2 * half, 1, act=nn.SiLU))
        self.classifier = nn.Linear(2 * half, CLASSES)

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, H, W] -> [N, 1000]
        pooled = [self.narrow(self.features(x))]
        for _ in range(3):
            pooled.append(self.pool(pooled[-1]))
        return self.classifier(self.wide(torch.cat(pooled, 1)).mean((2, 3)))


class UNet(nn.Module):
    """Ronneberger et al., 2015 (arXiv:1505.04597), padded, with BatchNorm and half its width: a mask as large as the
    image, by transposed convolutions and what the way down had at each size."""

    WIDTHS = (32, 64, 128, 256, 512)

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        widths = self.WIDTHS
        self.down = nn.ModuleList(self._twice(a, b) for a, b in zip((3, *widths), widths, strict=False))
        self.pool = nn.MaxPool2d(2)
        upwards = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(wide, narrow, 2, 2) for wide, narrow in upwards)
        self.up = nn.ModuleList(self._twice(wide, narrow) for wide, narrow in upwards)
        self.head = nn.Conv2d(widths[0], classes, 1)

    @staticmethod
    def _twice(in_channels: int, out_channels: int) -> nn.Sequential:
        return nn.Sequential(*_conv_bn(in_channels, out_channels, 3), *_conv_bn(out_channels, out_channels, 3))

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, H, W] -> [N, classes, H, W]; H and W divisible by 16
        kept = []
        for i, stage in enumerate(self.down):
            x = stage(self.pool(x) if i else x)
            kept.append(x)
        for grow, stage, beside in zip(self.grow, self.up, kept[-2::-1], strict=True):
            x = stage(torch.cat((beside, grow(x)), 1))
        return self.head(x)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": partial(resnet18, 3, CLASSES),
    "resnet50": partial(resnet50, 3, CLASSES),
    "mobilenet_v2": MobileNetV2,
    "vgg16": VGG16,
    "densenet121": DenseNet121,
    "cspdarknet": CSPDarknet,
    "unet": UNet,
}


def settled(name: str, size: int) -> nn.Module:
    """Random weights in eval mode, BatchNorm settled on noise."""
    torch.manual_seed(0)
    model = MODELS[name]().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # those that begin at zero would fold a layer's weights to nothing
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(4, 3, size, size))
    return model.eval()
