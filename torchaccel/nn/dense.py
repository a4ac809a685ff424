"""Dense float layers in their strongest form: what a layer that stays dense runs as, and what others are timed against.

On a CPU in float32 without gradients they call oneDNN with prepacked weights and the activation and residual fused
(the ops that frozen `torch.compile` calls); otherwise plain PyTorch. They stay trainable.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from torchaccel.nn._activate import activate_

_ONEDNN: dict[str, tuple[str, list[float], str]] = {
    "none": ("none", [], ""),
    "relu": ("relu", [], ""),
    "relu6": ("hardtanh", [0.0, 6.0], ""),
    "gelu": ("gelu", [], "none"),
    "silu": ("swish", [], ""),
}


class _Dense(nn.Module):
    """Holds the fused activation and, beside the float weight, a packed copy that is made when it is first needed."""

    plain: type[nn.Module]  # that of torch.nn
    activation: str
    _packed: Tensor | None
    _packed_from: tuple[Tensor, int] | None = None

    def __init__(self, *args: Any, activation: str = "none", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activation, self._packed = activation, None

    @classmethod
    def from_float(cls, layer: nn.Module) -> Any:
        """The same layer, sharing the parameters of `layer`, a plain one."""
        made = _plain(cls, layer)
        made.activation, made._packed = "none", None
        return made

    def to_float(self) -> Any:
        """The plain layer, without what was fused, sharing the parameters."""
        return _plain(self.plain, self)

    def _stale(self) -> bool:
        """Whether the weight is another than the packed one; notes the present one, which is about to be packed."""
        weight = cast(Tensor, self.weight)
        version = 0 if weight.is_inference() else weight._version
        packed = self._packed_from
        if self._packed is not None and packed is not None and packed[0] is weight and packed[1] == version:
            return False
        self._packed_from = weight, version
        return True

    def fuse_activation(self, activation: str) -> None:
        """Apply `activation` ("none", "relu", "relu6", "gelu" or "silu") after bias and residual."""
        self.activation = activation

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": None, "_packed_from": None}

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._packed = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._packed = None
        super()._load_from_state_dict(*args, **kwargs)

    def _onednn(self, x: Tensor) -> bool:
        return bool(
            x.device.type == "cpu"
            and x.dtype == torch.float32
            and x.numel() > 0
            and not torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and torch.backends.mkldnn.is_available()
            and torch.backends.mkldnn.enabled
        )

    def _finish(self, y: Tensor, residual: Tensor | None) -> Tensor:
        return activate_(y if residual is None else y + residual, self.activation)


class DenseConv2d(_Dense, nn.Conv2d):
    """`nn.Conv2d` with a fused residual and activation: `act(conv(x) + residual)`.

    Args:
        Those of `nn.Conv2d`, and activation: "none", "relu", "relu6", "gelu" or "silu".
    """

    plain = nn.Conv2d

    def config(self) -> dict[str, Any]:
        """The arguments that make an empty layer of this shape."""
        names = (
            "in_channels",
            "out_channels",
            "kernel_size",
            "stride",
            "padding",
            "dilation",
            "groups",
            "padding_mode",
        )
        return {name: getattr(self, name) for name in names} | {
            "bias": self.bias is not None,
            "activation": self.activation,
        }

    def _plainly_padded(self) -> bool:
        """Whether the padding is no wider than what the kernel reaches: on some that are, oneDNN's op crashes."""
        if self.padding_mode != "zeros" or isinstance(self.padding, str):
            return False
        return all(p <= d * (k - 1) for p, d, k in zip(self.padding, self.dilation, self.kernel_size, strict=True))

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        x = input  # named as in the layer that this one stands in for
        if not self._onednn(x) or not self._plainly_padded() or x.dim() != 4:
            return self._finish(super().forward(x), residual)
        geometry = list(self.padding), list(self.stride), list(self.dilation), self.groups
        if self._stale():
            self._packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight.detach(), *geometry, list(x.shape))
        if residual is None:
            finish = _ONEDNN[self.activation]
            return torch.ops.mkldnn._convolution_pointwise(x, self._packed, self.bias, *geometry, *finish)
        if self.activation not in ("none", "relu"):  # oneDNN fuses no other activation after a sum
            y = torch.ops.mkldnn._convolution_pointwise(x, self._packed, self.bias, *geometry, "none", [], "")
            return self._finish(y, residual)
        unary = "relu" if self.activation == "relu" else None
        return torch.ops.mkldnn._convolution_pointwise.binary(
            x, residual, self._packed, self.bias, *geometry, "add", 1.0, unary, [], ""
        )


class DenseConvTranspose2d(_Dense, nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` with a fused activation."""

    plain = nn.ConvTranspose2d

    def config(self) -> dict[str, Any]:
        """The arguments that make an empty layer of this shape."""
        names = ("in_channels", "out_channels", "kernel_size", "stride")
        made = {name: getattr(self, name) for name in names}
        return made | {"bias": self.bias is not None, "activation": self.activation}

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return self._finish(super().forward(input, output_size), None)


class DenseLinear(_Dense, nn.Linear):
    """`nn.Linear` with a fused residual and activation: `act(linear(x) + residual)`."""

    plain = nn.Linear

    def config(self) -> dict[str, Any]:
        """The arguments that make an empty layer of this shape."""
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bias": self.bias is not None,
            "activation": self.activation,
        }

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        x = input  # named as in the layer that this one stands in for
        if not self._onednn(x) or residual is not None or x.dim() < 2:
            return self._finish(super().forward(x), residual)
        if self._stale():
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), x.numel() // x.shape[-1])
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, *_ONEDNN[self.activation])


def _plain(cls: Any, module: nn.Module) -> Any:
    """A module of `cls` with the attributes of `module`, sharing its parameters."""
    made = cls.__new__(cls)
    made.__dict__.update(
        {
            name: value
            for name, value in module.__dict__.items()
            if name not in ("activation", "_packed", "_packed_from")
        }
    )
    made._parameters, made._buffers, made._modules = (
        dict(module._parameters),
        dict(module._buffers),
        dict(module._modules),
    )
    return made
