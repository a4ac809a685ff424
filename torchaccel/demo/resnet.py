"""ResNet-18 and ResNet-50 with torchvision's parameter names, so that its checkpoints load.

Method: He et al., "Deep Residual Learning for Image Recognition", 2015 (arXiv:1512.03385), with the stride of a
bottleneck on its 3x3 convolution, as torchvision has it.
"""

from __future__ import annotations

from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512)


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)


def _downsample(in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    """The projection of a block's shortcut, or None where the shapes agree already."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(_conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _downsample(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:  # x: [N, C, H, W]
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.relu(x + shortcut)


class Bottleneck(nn.Module):
    """A 1x1 convolution down to `width`, a 3x3 one, a 1x1 one up to `4 * width`, and a shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, width * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(in_channels, width * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:  # x: [N, C, H, W]
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        return self.relu(x + shortcut)


class ResNet(nn.Module):
    """A stem that quarters the image, four stages of residual blocks, and a linear classifier."""

    def __init__(
        self, block: type[BasicBlock | Bottleneck], depths: tuple[int, ...], in_channels: int, num_classes: int
    ) -> None:
        super().__init__()
        for name, value in (("in_channels", in_channels), ("num_classes", num_classes)):
            if value < 1:
                raise ValueError(f"resnet: {name} is {value}, accepted is 1 or more")
        self.conv1 = nn.Conv2d(in_channels, WIDTHS[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = WIDTHS[0]
        stages = []
        for index, (depth, width) in enumerate(zip(depths, WIDTHS, strict=True)):
            blocks = [block(channels, width, stride=1 if index == 0 else 2)]
            channels = width * block.expansion
            blocks += [block(channels, width) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            # Each block begins as its shortcut, which makes the first steps of a short training stable
            # (Goyal et al., 2017, arXiv:1706.02677).
            if isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)
            elif isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)

    def forward(self, x: Tensor) -> Tensor:  # x: [N, in_channels, H, W] -> [N, num_classes]
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def resnet18(in_channels: int = 1, num_classes: int = 10) -> ResNet:
    """Build an untrained ResNet-18; without arguments the demo's model, for digits of 1x28x28.

    Args:
        in_channels: channels of the input image, [N, in_channels, H, W].
        num_classes: length of the output, [N, num_classes].

    Returns:
        The model in training mode, with torchvision's parameter names and shapes.

    Raises:
        ValueError: an argument below 1.

    Equivalent to `torchvision.models.resnet18()` with `in_channels=3, num_classes=1000`.
    """
    return ResNet(BasicBlock, (2, 2, 2, 2), in_channels, num_classes)


def resnet50(in_channels: int = 1, num_classes: int = 10) -> ResNet:
    """Build an untrained ResNet-50; without arguments the demo's model, for digits of 1x28x28.

    Args:
        in_channels: channels of the input image, [N, in_channels, H, W].
        num_classes: length of the output, [N, num_classes].

    Returns:
        The model in training mode, with torchvision's parameter names and shapes.

    Raises:
        ValueError: an argument below 1.

    Equivalent to `torchvision.models.resnet50()` with `in_channels=3, num_classes=1000`.
    """
    return ResNet(Bottleneck, (3, 4, 6, 3), in_channels, num_classes)
