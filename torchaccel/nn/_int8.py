"""Int8Module: what every int8 layer shares: its input's and output's quantization, fusing, state and checks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchaccel.nn._packed import PackedModule
from torchaccel.nn.input_range import InputRange
from torchaccel.ops import _check, has_kernel, quantize_int8

DTYPES = {"float32": torch.float32, "int8": torch.int8, "uint8": torch.uint8}
_HALVES = (torch.float16, torch.bfloat16)


def name_of(dtype: torch.dtype) -> str:
    """`"uint8"` for torch.uint8."""
    return str(dtype).removeprefix("torch.")


class Int8Module(PackedModule):
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

    op = ""
    derived: tuple[str, ...] = ("colsum", "packed")
    scale: Tensor
    bias: Tensor | None
    input_scale: Tensor
    input_zero_point: Tensor
    output_scale: Tensor | None
    output_zero_point: Tensor | None
    residual_scale: Tensor | None
    residual_zero_point: Tensor | None
    colsum: Tensor | None
    packed: Tensor | None

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
        super().__init__()
        name = type(self).__name__
        _check.known_activation(name, activation)
        for argument, value, accepted in (
            ("input", input, ("static", "dynamic")),
            ("input_dtype", input_dtype, ("uint8", "int8")),
            ("output_dtype", output_dtype, tuple(DTYPES)),
        ):
            if value not in accepted:
                _check.fail(name, f"{argument} is {value!r}, accepted are {', '.join(accepted)}")
        self.activation = activation
        self.input = input
        self.input_dtype = DTYPES[input_dtype]
        self.output_dtype = DTYPES[output_dtype]
        self.int8_residual = int8_residual
        self.register_buffer("scale", torch.ones(out_channels))
        self.register_buffer("bias", torch.zeros(out_channels) if bias else None)
        for role, present in (
            ("input", input == "static"),
            ("output", self.output_dtype in _check.INT8),
            ("residual", int8_residual),
        ):
            self.register_buffer(f"{role}_scale", torch.ones(1) if present else None)
            self.register_buffer(f"{role}_zero_point", torch.zeros(1, dtype=torch.int32) if present else None)
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
        """Quantize the input with this static scale, which an int8 input must have as well."""
        InputRange(scale, zero_point, dtype)
        self.input, self.input_dtype = "static", dtype
        self._set_range("input", scale, zero_point)

    def set_output(self, scale: float, zero_point: int, dtype: torch.dtype) -> None:
        """Emit int8 or uint8: `rint(y / scale) + zero_point`, saturating."""
        InputRange(scale, zero_point, dtype)
        self.output_dtype = dtype
        self._set_range("output", scale, zero_point)

    def set_residual(self, scale: float, zero_point: int) -> None:
        """Take a residual of int8 or uint8, `(q - zero_point) * scale`, rather than of floats."""
        InputRange(scale, zero_point, torch.int8 if zero_point < 0 else torch.uint8)
        self.int8_residual = True
        self._set_range("residual", scale, zero_point)

    def set_float(self) -> None:
        """Emit floats and take a residual of floats: undo `set_output` and `set_residual`."""
        self.output_dtype, self.int8_residual = torch.float32, False
        self.output_scale = self.output_zero_point = self.residual_scale = self.residual_zero_point = None

    def _set_range(self, role: str, scale: float, zero_point: int) -> None:
        device = self._device()
        setattr(self, f"{role}_scale", torch.tensor([scale], dtype=torch.float32, device=device))
        setattr(self, f"{role}_zero_point", torch.tensor([zero_point], dtype=torch.int32, device=device))

    def input_range(self) -> InputRange | None:
        """The static quantization of the input, or None where it is dynamic."""
        if self.input == "dynamic":
            return None
        return InputRange(float(self.input_scale), int(self.input_zero_point), self.input_dtype)

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

    def check_state(self, state: dict[str, Tensor]) -> None:
        for name in ("scale", "bias", "input_scale", "output_scale", "residual_scale"):
            value = state.get(name)
            if value is None or value.is_meta:
                continue
            if not torch.isfinite(value).all():
                raise ValueError(f"{name} holds NaN or an infinity, accepted are finite values")
            if name.endswith("_scale") and not (value > 0).all():
                raise ValueError(f"{name} is {value.tolist()}, accepted is a number above 0")

    # Inputs and outputs.

    def _fast(self) -> dict[str, Any]:
        """The buffers by name; `self.name` goes through nn.Module's lookup, a cost that shows in small layers."""
        return self._buffers

    def _quantized_input(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`x` with the module's static scale: quantized here where it is float."""
        b = self._fast()
        scale, zero_point = b["input_scale"], b["input_zero_point"]
        if x.dtype in _check.INT8:
            if x.dtype != self.input_dtype:
                _check.fail(type(self).__name__, f"x is {x.dtype}, accepted are {self.input_dtype} and float types")
            return x, scale, zero_point
        return quantize_int8(x, scale, zero_point, self.input_dtype), scale, zero_point

    def _refuse_int8(self, x: Tensor) -> None:
        if x.dtype in _check.INT8:
            _check.fail(
                type(self).__name__, f"x is {x.dtype}, but the input is quantized dynamically; accepted are float types"
            )

    def _out_dtype(self, x: Tensor) -> torch.dtype:
        if self.output_dtype == torch.float32 and x.dtype in _HALVES:
            return x.dtype
        return self.output_dtype

    def _repr_tail(self) -> str:
        out = [] if self.activation == "none" else [f"activation={self.activation}"]
        out.append(f"bias={self.bias is not None}")
        out.append(f"input={name_of(self.input_dtype)} {self.input}")
        out.append(f"output={name_of(self.output_dtype)}")
        if self.int8_residual:
            out.append("residual=int8")
        out.append(f"kernel={'native' if has_kernel(self.op, self._device()) else 'reference'}")
        return ", ".join(out)
