"""Int8Module: what every int8 layer shares: its input's and output's quantization, fusing, state and checks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchaccel.nn._ranged import RangedModule, name_of
from torchaccel.nn.input_range import InputRange
from torchaccel.ops import _check, _tiles


class Int8Module(RangedModule):
    """Base of the int8 layers with quantized inputs; a subclass adds its weight and `forward`.

    Args:
        out_channels: O, the number of scales.
        bias: whether there is one.
        activation: "none", "relu", "relu6", "gelu" or "silu", applied last.
        input: "static" (one scale, found by calibration) or "dynamic" (a scale per row or image, found at each call).
        input_dtype: "uint8" or "int8".
        output_dtype: "float32" (or the half type of the input), "int8" or "uint8" with a static scale.
        int8_residual: whether the residual is int8 with a static scale; False takes floats.
    """

    derived: tuple[str, ...] = ("colsum", "packed")
    scale: Tensor
    bias: Tensor | None
    residual_scale: Tensor | None
    residual_zero_point: Tensor | None
    colsum: Tensor | None
    packed: Tensor | None
    residual_range: InputRange | None = None
    """The calibrated range of the residual, for whoever makes it int8; no part of the state."""

    def __init__(
        self,
        out_channels: int,
        bias: bool,
        activation: str,
        input: str,
        input_dtype: str,
        output_dtype: str,
        int8_residual: bool,
    ) -> None:
        super().__init__(input_dtype, output_dtype)
        _check.known_activation(type(self).__name__, activation)
        self._check_choice("input", input, ("static", "dynamic"))
        self.activation = activation
        self.input = input
        self.int8_residual = int8_residual
        self.register_buffer("scale", torch.ones(out_channels))
        self.register_buffer("bias", torch.zeros(out_channels) if bias else None)
        self._register_range("input", input == "static")
        self._register_range("output", self.output_dtype in _check.INT8)
        self._register_range("residual", int8_residual)
        for derived in self.derived:
            self.register_buffer(derived, None, persistent=False)

    # Settings.

    def config(self) -> dict[str, Any]:
        return {
            "bias": self.bias is not None,
            "activation": self.activation,
            "input": self.input,
            "input_dtype": name_of(self.input_dtype),
            "output_dtype": name_of(self.output_dtype),
        }

    def fuse_activation(self, name: str) -> None:
        """Apply an activation ("relu", "relu6", "gelu", "silu") as the last step, in the same pass."""
        _check.known_activation(type(self).__name__, name)
        if self.activation != "none":
            _check.fail(
                type(self).__name__, f"activation is already {self.activation!r}, cannot fuse {name!r} after it"
            )
        self.activation = name

    def set_input(self, scale: float, zero_point: int, dtype: torch.dtype) -> None:
        super().set_input(scale, zero_point, dtype)
        self.input = "static"

    def set_residual(self, scale: float, zero_point: int, dtype: torch.dtype) -> None:
        """Take a residual of int8 or uint8, `(q - zero_point) * scale`, rather than of floats."""
        InputRange(scale, zero_point, dtype)
        self.int8_residual = True
        self._set_range("residual", scale, zero_point)

    def set_float(self) -> None:
        """Emit floats and take a residual of floats: undo `set_output` and `set_residual`."""
        super().set_float()
        self.int8_residual = False
        self.residual_scale = self.residual_zero_point = None

    def fold_affine(self, gamma: Tensor, beta: Tensor) -> None:
        """Fold `y * gamma + beta` per output channel, such as a BatchNorm in eval mode, into scale and bias.

        Args:
            gamma, beta: [O] float, finite.

        Raises:
            ValueError: another shape, a value that is not finite, or a layer whose output is already activated,
                requantized or added to an int8 residual.
        """
        name = type(self).__name__
        if self.activation != "none" or self.output_dtype != torch.float32 or self.int8_residual:
            _check.fail(name, "fold_affine comes before fuse_activation, set_output and set_residual")
        for argument, value in (("gamma", gamma), ("beta", beta)):
            _check.sizes(name, argument, value, tuple(self.scale.shape))
            if not torch.isfinite(value).all():
                _check.fail(name, f"{argument} holds NaN or an infinity, accepted are finite values")
        gamma, beta = (v.detach().to(self.scale) for v in (gamma, beta))
        self.scale = self.scale * gamma
        self.bias = beta.clone() if self.bias is None else self.bias * gamma + beta

    # State.

    def _set_from_float(self, weight_scale: Tensor, bias: Tensor | None, input: InputRange | None) -> None:
        self.scale = weight_scale
        if bias is not None:
            if not torch.isfinite(bias).all():
                _check.fail(type(self).__name__, "bias holds NaN or an infinity, accepted are finite values")
            self.bias = bias.detach().to(torch.float32).clone()
        if input is not None:
            self.set_input(input.scale, input.zero_point, input.dtype)

    def is_two_four(self) -> bool:
        """Whether the weight is packed as 2:4, so that the kernel takes half the products."""
        return _tiles.wanted(self.op, self._device()) and _tiles.holds_two_four(self.packed)

    def _refuse_int8(self, x: Tensor) -> None:
        if x.dtype in _check.INT8:
            _check.fail(
                type(self).__name__, f"x is {x.dtype}, but the input is quantized dynamically; accepted are float types"
            )

    def _repr_tail(self) -> str:
        out = [] if self.activation == "none" else [f"activation={self.activation}"]
        out.append(f"bias={self.bias is not None}")
        out.append(f"input={name_of(self.input_dtype)} {self.input}")
        out.append(f"output={name_of(self.output_dtype)}")
        if self.int8_residual:
            out.append("residual=int8")
        out.append(self._kernel())
        return ", ".join(out)
