"""Argument checks that the ops share; each error names the op, what was given and what is accepted."""

from __future__ import annotations

import torch
from torch import Tensor

ACTIVATIONS = ("none", "relu", "relu6", "gelu", "silu")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
INT8 = (torch.int8, torch.uint8)

# int32 accumulation is exact while K * max|a| * max|b| < 2^31.
MAX_K = {torch.int8: 131_071, torch.uint8: 65_793}


def fail(op: str, message: str) -> None:
    raise ValueError(f"{op}: {message}")


def dtype_in(op: str, name: str, dtype: torch.dtype, accepted: tuple[torch.dtype, ...]) -> None:
    if dtype not in accepted:
        fail(op, f"{name} is {dtype}, accepted are {', '.join(map(str, accepted))}")


def device_of(op: str, first: Tensor, **others: Tensor | None) -> None:
    for name, tensor in others.items():
        if tensor is not None and tensor.device != first.device:
            fail(op, f"{name} is on {tensor.device}, the input is on {first.device}")


def sizes(op: str, name: str, tensor: Tensor | None, *accepted: tuple[int, ...]) -> None:
    if tensor is not None and tuple(tensor.shape) not in accepted:
        fail(
            op, f"{name} has shape {tuple(tensor.shape)}, accepted is {' or '.join(map(str, dict.fromkeys(accepted)))}"
        )


def known_activation(op: str, name: str) -> None:
    if name not in ACTIVATIONS:
        fail(op, f"activation is {name!r}, accepted are {', '.join(ACTIVATIONS)}")


def depth(op: str, k: int, dtype: torch.dtype) -> None:
    if k > MAX_K[dtype]:
        fail(op, f"K={k} could overflow int32; at most {MAX_K[dtype]} is accepted for {dtype} activations")


def scale_value(op: str, name: str, scale: Tensor) -> None:
    """One finite, positive scale; read only where that needs no device synchronisation."""
    if scale.numel() != 1:
        fail(op, f"{name} has {scale.numel()} elements, accepted is 1")
    if scale.device.type == "cpu" and not torch.compiler.is_compiling() and not 0 < scale.item() < float("inf"):
        fail(op, f"{name} is {scale.item()}, accepted is a finite number above 0")


def tiles(op: str, packed: Tensor | None, tile_columns: Tensor | None, tile_offsets: Tensor | None) -> None:
    """Skipped tiles come with the kept ones, their columns and their offsets."""
    parts = {"packed": packed, "tile_columns": tile_columns, "tile_offsets": tile_offsets}
    given = [name for name, part in parts.items() if part is not None]
    if given not in ([], ["packed"], [*parts]):
        fail(op, f"{' and '.join(given)} given alone; accepted are packed, or packed, tile_columns and tile_offsets")


def epilogue(
    op: str,
    a: Tensor,
    rows: int,
    n: int,
    scale_a: Tensor,
    scale_b: Tensor,
    zero_point: Tensor | None,
    bias: Tensor | None,
    activation: str,
    out_dtype: torch.dtype,
    scale_out: Tensor | None,
    zero_point_out: Tensor | None,
) -> None:
    """Check what all int8 ops take besides their operands; `rows` is how many scales `a` may have."""
    device_of(op, a, scale_a=scale_a, scale_b=scale_b, zero_point=zero_point, bias=bias, scale_out=scale_out)
    sizes(op, "scale_a", scale_a, (1,), (rows,))
    sizes(op, "scale_b", scale_b, (n,))
    sizes(op, "zero_point", zero_point, (1,), (rows,))
    sizes(op, "bias", bias, (n,))
    known_activation(op, activation)
    output(op, out_dtype, scale_out, zero_point_out)


def output(op: str, out_dtype: torch.dtype, scale_out: Tensor | None, zero_point_out: Tensor | None) -> None:
    """A float type as it is, int8 and uint8 with their scale."""
    dtype_in(op, "out_dtype", out_dtype, FLOATS + INT8)
    if (scale_out is not None) != (out_dtype in INT8):
        given = "no scale_out" if scale_out is None else "a scale_out"
        fail(op, f"out_dtype is {out_dtype} with {given}; int8 and uint8 need one, float types take none")
    if scale_out is not None:
        scale_value(op, "scale_out", scale_out)
        sizes(op, "zero_point_out", zero_point_out, (1,))
