"""Int8LinearWeightOnly: a linear layer with int8 weights and float activations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torchaccel import ops
from torchaccel.nn import _inference, _weights
from torchaccel.nn._packed import PackedModule
from torchaccel.ops import _check


class Int8LinearWeightOnly(PackedModule):
    """`y = act(x @ weight.T + bias)` with int8 weights; for few rows, where reading the weights is the cost.

    Args:
        in_features, out_features: K and N.
        bias: whether there is one.
        activation: "none", "relu", "relu6", "gelu" or "silu".

    Shape: x [..., K] float32, float16 or bfloat16; returns [..., N] of the same dtype.

    Equivalent to `F.linear(x, weight * scale[:, None], bias)`.
    """

    op = "int8_linear_weight_only"
    derived = ("packed",)
    weight: Tensor
    scale: Tensor
    bias: Tensor | None
    packed: Tensor | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True, activation: str = "none") -> None:
        super().__init__()
        _check.known_activation("Int8LinearWeightOnly", activation)
        self.in_features = in_features
        self.out_features = out_features
        self.activation = activation
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(out_features))
        self.register_buffer("bias", torch.zeros(out_features) if bias else None)
        self.register_buffer("packed", None, persistent=False)

    @classmethod
    def from_float(cls, module: nn.Linear) -> Int8LinearWeightOnly:
        """Quantize the weights of a linear layer.

        Raises:
            ValueError: weights that are not finite.
        """
        with torch.device(module.weight.device):
            out = cls(module.in_features, module.out_features, bias=module.bias is not None)
        out.weight, out.scale = _weights.quantize_weight("Int8LinearWeightOnly", module.weight)
        if module.bias is not None:
            out.bias = module.bias.detach().to(torch.float32).clone()
        out.pack()
        return out.train(module.training)

    def to_float(self) -> nn.Linear:
        """`nn.Linear` with the dequantized weight and bias; without the fused activation."""
        weight = _weights.dequantize_weight(self.weight, self.scale)
        sizes = (self.in_features, self.out_features)
        return _weights.float_layer(nn.Linear, *sizes, weight=weight, bias=self.bias, training=self.training)

    def config(self) -> dict[str, Any]:
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bias": self.bias is not None,
            "activation": self.activation,
        }

    def pack(self) -> None:
        self.packed = ops.pack_weight_only(self.weight)

    def fuse_activation(self, name: str) -> None:
        """Apply an activation ("relu", "relu6", "gelu", "silu") as the last step, in the same pass."""
        _check.known_activation("Int8LinearWeightOnly", name)
        if self.activation != "none":
            _check.fail(
                "Int8LinearWeightOnly", f"activation is already {self.activation!r}, cannot fuse {name!r} after it"
            )
        self.activation = name

    def fold_affine(self, gamma: Tensor, beta: Tensor) -> None:
        """Fold `y * gamma + beta` per output feature, such as a BatchNorm in eval mode, into scale and bias.

        Raises:
            ValueError: another shape than [O], or a layer that is already activated.
        """
        name = "Int8LinearWeightOnly"
        if self.activation != "none":
            _check.fail(name, "fold_affine comes before fuse_activation")
        for argument, value in (("gamma", gamma), ("beta", beta)):
            _check.sizes(name, argument, value, tuple(self.scale.shape))
        gamma, beta = (v.detach().to(self.scale) for v in (gamma, beta))
        self.scale = self.scale * gamma
        self.bias = beta.clone() if self.bias is None else self.bias * gamma + beta

    def check_state(self, state: dict[str, Tensor]) -> None:
        for name in ("scale", "bias"):
            value = state.get(name)
            if value is not None and not value.is_meta and not torch.isfinite(value).all():
                raise ValueError(f"{name} holds NaN or an infinity, accepted are finite values")

    def forward(self, input: Tensor) -> Tensor:
        x = input  # named as in the layer that this one stands in for
        guarded = _inference.needs_guard(x)
        source = x.detach() if guarded else x
        y = ops.int8_linear_weight_only(source, self.weight, self.scale, self.bias, self.activation, self.packed)
        return _inference.guard(y, x) if guarded else y

    def extra_repr(self) -> str:
        kernel = "native" if ops.has_kernel(self.op, self.weight.device) else "reference"
        activation = "" if self.activation == "none" else f"activation={self.activation}, "
        tail = f"{activation}bias={self.bias is not None}, weight=int8, kernel={kernel}"
        return f"{self.in_features}, {self.out_features}, {tail}"
