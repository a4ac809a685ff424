"""Weights from float to int8 and the reading of a float layer's settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from torchaccel.ops import _check

L = TypeVar("L", nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def quantize_weight(owner: str, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize a weight symmetrically per output channel: `scale = max|w| / 127`, `q = rint(w / scale)`.

    Args:
        owner: the class to name in an error.
        weight: [O, ...] float.

    Returns:
        q: [O, ...] int8 in [-127, 127], contiguous; scale: [O] float32, 1 where a channel is all zeros.

    Raises:
        ValueError: a weight with NaN or an infinity, or one without elements.

    Equivalent to `torch.quantize_per_channel(w, w.abs().amax(1) / 127, zeros, 0, torch.qint8).int_repr()`.
    """
    w = weight.detach().to(torch.float32)
    if w.numel() == 0:
        _check.fail(owner, f"weight has shape {tuple(w.shape)}, accepted is one with elements")
    if not torch.isfinite(w).all():
        _check.fail(owner, "weight holds NaN or an infinity, accepted are finite weights")
    largest = w.flatten(1).abs().amax(1)
    # A channel of subnormal weights would get a scale of 0.
    scale = torch.clamp(largest / 127.0, min=torch.finfo(torch.float32).tiny)
    scale = torch.where(largest > 0, scale, 1.0)
    q = torch.round(w / scale.view(-1, *[1] * (w.dim() - 1))).clamp(-127, 127)
    return q.to(torch.int8).contiguous(), scale


def dequantize_weight(q: Tensor, scale: Tensor) -> Tensor:
    """`q * scale` per output channel, float32."""
    return q.to(torch.float32) * scale.view(-1, *[1] * (q.dim() - 1))


def check_depth(owner: str, k: int, dtype: torch.dtype) -> None:
    """A layer of `k` products per output must fit int32 sums."""
    _check.depth(owner, k, dtype)


def pair(owner: str, name: str, value: int | Sequence[int], least: int) -> tuple[int, int]:
    """An integer or two of them as (height, width)."""
    both = (value, value) if isinstance(value, int) else tuple(int(v) for v in value)
    if len(both) != 2 or min(both) < least:
        _check.fail(owner, f"{name} is {value}, accepted are one or two integers of at least {least}")
    return both[0], both[1]


def symmetric_padding(owner: str, conv: nn.Conv2d) -> tuple[int, int]:
    """The zeros on each side of (height, width) that `conv` pads with.

    Raises:
        ValueError: a padding mode other than zeros, or "same" padding that differs between the two sides.
    """
    if conv.padding_mode != "zeros":
        _check.fail(owner, f"padding_mode is {conv.padding_mode!r}, accepted is 'zeros'")
    if conv.padding == "valid":
        return 0, 0
    if conv.padding == "same":
        total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        if any(t % 2 for t in total):
            _check.fail(
                owner,
                f"padding is 'same' with kernel {tuple(conv.kernel_size)} and dilation {tuple(conv.dilation)}, which "
                "pads the two sides differently; accepted is equal padding",
            )
        return total[0] // 2, total[1] // 2
    return conv.padding[0], conv.padding[1]  # type: ignore[return-value]


def conv_settings(owner: str, conv: nn.Conv2d) -> dict:
    """The constructor arguments that every convolution module shares, read from a float convolution."""
    return {
        "in_channels": conv.in_channels,
        "out_channels": conv.out_channels,
        "kernel_size": list(conv.kernel_size),
        "stride": list(conv.stride),
        "padding": list(symmetric_padding(owner, conv)),
        "dilation": list(conv.dilation),
        "bias": conv.bias is not None,
    }


def float_layer(kind: type[L], *sizes: Any, weight: Tensor, bias: Tensor | None, training: bool) -> L:
    """`kind(*sizes)` with this weight and bias, on their device; draws no random numbers."""
    layer = nn.utils.skip_init(kind, *sizes, bias=bias is not None, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer.train(training)
