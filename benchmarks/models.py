"""Networks that the benchmarks time, with torchvision's parameter names where it has them, so that checkpoints load."""

from __future__ import annotations

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
