"""RangedModule: what modules with a static quantization of their input and output share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchaccel.nn._packed import PackedModule
from torchaccel.nn.input_range import InputRange
from torchaccel.ops import _check, quantize_int8

DTYPES = {"float32": torch.float32, "int8": torch.int8, "uint8": torch.uint8}
_HALVES = (torch.float16, torch.bfloat16)


def name_of(dtype: torch.dtype) -> str:
    """`"uint8"` for torch.uint8."""
    return str(dtype).removeprefix("torch.")


class RangedModule(PackedModule):
    """Base of the modules that read int8, or quantize floats on their own, and write floats or int8.

    Args:
        input_dtype: "uint8" or "int8".
        output_dtype: "float32" (or the half type of the input), "int8" or "uint8" with a static scale.
    """

    input_scale: Tensor | None
    input_zero_point: Tensor | None
    output_scale: Tensor | None
    output_zero_point: Tensor | None

    def __init__(self, input_dtype: str, output_dtype: str) -> None:
        super().__init__()
        self._check_choice("input_dtype", input_dtype, ("uint8", "int8"))
        self._check_choice("output_dtype", output_dtype, tuple(DTYPES))
        self.input_dtype = DTYPES[input_dtype]
        self.output_dtype = DTYPES[output_dtype]

    def _check_choice(self, argument: str, value: str, accepted: tuple[str, ...]) -> None:
        if value not in accepted:
            _check.fail(type(self).__name__, f"{argument} is {value!r}, accepted are {', '.join(accepted)}")

    def _register_range(self, role: str, present: bool) -> None:
        self.register_buffer(f"{role}_scale", torch.ones(1) if present else None)
        self.register_buffer(f"{role}_zero_point", torch.zeros(1, dtype=torch.int32) if present else None)

    def _set_range(self, role: str, scale: float, zero_point: int) -> None:
        device = self._device()
        setattr(self, f"{role}_scale", torch.tensor([scale], dtype=torch.float32, device=device))
        setattr(self, f"{role}_zero_point", torch.tensor([zero_point], dtype=torch.int32, device=device))

    def set_input(self, scale: float, zero_point: int, dtype: torch.dtype) -> None:
        """Quantize the input with this static scale, which an int8 input must have as well."""
        InputRange(scale, zero_point, dtype)
        self.input_dtype = dtype
        self._set_range("input", scale, zero_point)

    def set_output(self, scale: float, zero_point: int, dtype: torch.dtype) -> None:
        """Emit int8 or uint8: `rint(y / scale) + zero_point`, saturating."""
        InputRange(scale, zero_point, dtype)
        self.output_dtype = dtype
        self._set_range("output", scale, zero_point)

    def set_float(self) -> None:
        """Emit floats: undo `set_output`."""
        self.output_dtype = torch.float32
        self.output_scale = self.output_zero_point = None

    def input_range(self) -> InputRange | None:
        """The static quantization of the input, or None where it has none."""
        if self.input_scale is None or self.input_zero_point is None:
            return None
        return InputRange(float(self.input_scale), int(self.input_zero_point), self.input_dtype)

    def check_state(self, state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            if value.is_meta or not value.is_floating_point():
                continue
            if not torch.isfinite(value).all():
                raise ValueError(f"{name} holds NaN or an infinity, accepted are finite values")
            if name.endswith("_scale") and not (value > 0).all():
                raise ValueError(f"{name} is {value.tolist()}, accepted is a number above 0")

    def _fast(self) -> dict[str, Any]:
        """The buffers by name; `self.name` goes through nn.Module's lookup, a cost that shows in small layers."""
        return self._buffers

    def _quantized_input(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self._quantized(x, "input", self.input_dtype)

    def _quantized(self, x: Tensor, role: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """`x` with the static scale of `role`, and that scale and zero point; quantized here where it is float."""
        scale, zero_point = self._buffers[f"{role}_scale"], self._buffers[f"{role}_zero_point"]
        assert scale is not None and zero_point is not None
        if x.dtype in _check.INT8:
            if x.dtype != dtype:
                _check.fail(type(self).__name__, f"x is {x.dtype}, accepted are {dtype} and float types")
            return x, scale, zero_point
        return quantize_int8(x, scale, zero_point, dtype), scale, zero_point

    def _out_dtype(self, x: Tensor) -> torch.dtype:
        if self.output_dtype == torch.float32 and x.dtype in _HALVES:
            return x.dtype
        return self.output_dtype

    def _kernel(self) -> str:
        return f"kernel={'native' if self.unsupported(self._device()) is None else 'reference'}"
