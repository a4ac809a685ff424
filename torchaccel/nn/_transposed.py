"""Transposed convolutions whose windows do not overlap, as 1x1 convolutions: each pixel becomes a square of them."""

from __future__ import annotations

from torch import Tensor, nn

from torchaccel.ops import _check


def why_not(module: nn.ConvTranspose2d) -> str | None:
    """Why windows overlap, or leave gaps, or None."""
    kernel = module.kernel_size
    if kernel[0] != kernel[1] or tuple(module.stride) != tuple(kernel):
        return f"kernel_size is {tuple(kernel)} and stride {tuple(module.stride)}, accepted are equal ones, square"
    plain = (module.padding, module.output_padding, module.dilation) == ((0, 0), (0, 0), (1, 1)) and module.groups == 1
    return None if plain else "padding, output_padding, dilation or groups are other than 0, 0, 1 and 1"


def of_places(owner: str, module: nn.ConvTranspose2d) -> Tensor:
    """The weight [C, O, k, k] as [k * k * O, C, 1, 1]: all output channels of a place of the square, then the next."""
    if (reason := why_not(module)) is not None:
        _check.fail(owner, reason)
    return module.weight.detach().permute(2, 3, 1, 0).reshape(-1, module.in_channels, 1, 1)


def spread(y: Tensor, size: int) -> Tensor:
    """What the 1x1 convolution gives [N, size * size * O, H, W] as [N, O, size * H, size * W], channels_last."""
    n, channels, h, w = y.shape
    squares = y.permute(0, 2, 3, 1).reshape(n, h, w, size, size, channels // size**2)
    rows = squares.transpose(2, 3).reshape(n, h * size, w * size, channels // size**2)
    return rows.permute(0, 3, 1, 2)
