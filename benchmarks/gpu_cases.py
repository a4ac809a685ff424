"""Random arguments of the ops, made on the CPU from a seed, and the comparison of what two devices give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gpu_checks_quantize import same
from torchaccel.ops import blocks

INT8 = (torch.int8, torch.uint8)
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
ACTIVATIONS = ("none", "relu", "relu6", "gelu", "silu")
Arguments = dict[str, Any]
# A step of the last bit, where expf and erff may differ.
_CLOSE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def integers(shape: tuple[int, ...], dtype: torch.dtype, seed: int, weight: bool = False) -> Tensor:
    """Over the whole range of `dtype`, a tenth of them its extremes; weights stay within [-127, 127]."""
    info, g = torch.iinfo(dtype), torch.Generator().manual_seed(seed)
    low = -127 if weight else info.min
    x = torch.randint(low, info.max + 1, shape, generator=g, dtype=torch.int32)
    extreme = torch.where(torch.rand(shape, generator=g) < 0.5, low, info.max)
    return torch.where(torch.rand(shape, generator=g) < 0.1, extreme, x).to(dtype)


def floats(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def epilogue(
    channels: int, depth: int, units: int, dtype: torch.dtype, seed: int, out_dtype: torch.dtype, activation: str
) -> Arguments:
    """Scales, zero points and bias of an int8 op whose input is of `dtype`; outputs spread over the int8 range."""
    g, info = torch.Generator().manual_seed(seed), torch.iinfo(dtype)
    made: Arguments = {
        "scale_a": torch.rand(units, generator=g) * 0.02 + 0.001,
        "scale_b": torch.rand(channels, generator=g) * 0.02 + 0.001,
        "zero_point": torch.randint(info.min, info.max + 1, (units,), generator=g, dtype=torch.int32),
        "bias": torch.randn(channels, generator=g),
        "activation": activation,
        "out_dtype": out_dtype,
    }
    if out_dtype in INT8:
        made["scale_out"] = torch.tensor([0.011 * max(depth, 1) ** 0.5])
        made["zero_point_out"] = torch.tensor([3 if out_dtype == torch.int8 else 130], dtype=torch.int32)
    return made


def pruned(weight: Tensor, pattern: str, seed: int, keep: float = 0.5) -> Tensor:
    """A weight [O, C, kh, kw] or [O, C] with zeros as `pattern` has them; `keep` of the blocks stay."""
    device = weight.device
    g = torch.Generator(device).manual_seed(seed)
    o, c, *rest = weight.shape
    if pattern != "2:4":
        rows, columns = blocks.block_of(pattern)
        drawn = torch.rand(o // rows, c // columns, *rest, generator=g, device=device)
        weight = weight * (drawn < keep).repeat_interleave(rows, 0).repeat_interleave(columns, 1).to(weight)
    if pattern.endswith("2:4"):
        drawn = torch.rand(o, c // 4, 4, *rest, generator=g, device=device)
        weight = weight * (drawn.argsort(2).argsort(2) < 2).reshape(weight.shape).to(weight)
    return weight


def on(device: torch.device, arguments: Arguments) -> Arguments:
    return {name: x.to(device) if isinstance(x, Tensor) else x for name, x in arguments.items()}


def compare(name: str, op: Callable[..., Any], device: torch.device, arguments: Arguments) -> None:
    """One call on `device` against the same call on the CPU: the same bits, or the last step behind GELU and SiLU."""
    want = op(**arguments)
    got = op(**on(device, arguments))
    for y, z in zip(*((given if isinstance(given, tuple) else (given,)) for given in (got, want)), strict=True):
        close(name, y, z, arguments.get("activation", "none"))


def close(name: str, got: Tensor, want: Tensor, activation: str = "none") -> None:
    if got.stride() != want.stride():
        raise AssertionError(f"{name}: strides {got.stride()}, not {want.stride()}")
    if activation not in ("gelu", "silu"):
        same(name, got, want)
        return
    if got.dtype in INT8:
        step = int((got.cpu().int() - want.int()).abs().max()) if want.numel() else 0
        if step > 1:
            raise AssertionError(f"{name}: {step} steps apart behind {activation}")
        return
    bound = _CLOSE[want.dtype]
    torch.testing.assert_close(
        got.cpu(), want, rtol=bound, atol=bound, equal_nan=True, msg=lambda text: f"{name}: {text}"
    )
