"""DenseScale: a depthwise 1x1 convolution in its strongest dense form, such as a BatchNorm that folds into no layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchaccel.nn.dense import DenseConv2d


class DenseScale(DenseConv2d):
    """`y = act(x * weight + bias + residual)` with a weight for each channel of [N, C, H, W].

    Equivalent to `nn.Conv2d(C, C, 1, groups=C)`; one pass over memory, where a convolution would pack its input.
    """

    @staticmethod
    def serves(layer: nn.Module) -> bool:
        """Whether a layer is such a convolution, with a bias."""
        if type(layer) is not nn.Conv2d or layer.bias is None or layer.in_channels != layer.out_channels:
            return False
        places = layer.kernel_size, layer.stride, layer.padding
        return layer.groups == layer.in_channels and places == ((1, 1), (1, 1), (0, 0))

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        assert self.bias is not None
        if input.dim() not in (3, 4) or input.shape[-3] != self.in_channels:
            return super().forward(input, residual)  # which says what it accepts
        weight, bias = self.weight.view(-1, 1, 1), self.bias.view(-1, 1, 1)
        if input.dim() != 4 or not input.is_contiguous():  # rows of channels, with which batch_norm is slower
            return self._finish(torch.addcmul(bias, input, weight), residual)
        mean, variance = self._statistics()
        return self._finish(F.batch_norm(input, mean, variance, weight.flatten(), self.bias, eps=0.0), residual)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """A mean of 0 and a variance of 1 for each channel, kept from call to call."""
        assert self.bias is not None
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return torch.zeros_like(self.bias), torch.ones_like(self.bias)
        if self._stale():
            self._packed = torch.stack([torch.zeros_like(self.bias), torch.ones_like(self.bias)])
        assert self._packed is not None
        mean, variance = self._packed
        return mean, variance
