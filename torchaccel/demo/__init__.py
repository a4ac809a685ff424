"""The demo: ResNets and MNIST, from training to the report."""

from torchaccel.demo.resnet import resnet18, resnet50

__all__ = ["resnet18", "resnet50"]
