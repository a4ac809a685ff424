"""Random arguments of the int8 ops, and what tests of native kernels compare by."""

from __future__ import annotations

import torch
from torch import Tensor

INT8 = (torch.int8, torch.uint8)
OUT = (torch.float32, torch.int8, torch.uint8)


def integers(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Values over the whole range of `dtype`, its extremes included."""
    info = torch.iinfo(dtype)
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(info.min, info.max + 1, shape, generator=g, dtype=torch.int32)
    edge = torch.rand(shape, generator=g) < 0.1
    extreme = torch.where(torch.rand(shape, generator=g) < 0.5, info.min, info.max)
    return torch.where(edge, extreme, x).to(dtype)


def floats(shape: tuple[int, ...], seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def epilogue(a: Tensor, n: int, depth: int, units: int, seed: int, out_dtype: torch.dtype, per_unit: bool) -> dict:
    """Keyword arguments that int8_linear and the convolutions share, with outputs spread over the int8 range."""
    g = torch.Generator().manual_seed(seed)
    count = units if per_unit else 1
    info = torch.iinfo(a.dtype)
    out: dict = {
        "scale_a": torch.rand(count, generator=g) * 0.02 + 0.001,
        "scale_b": torch.rand(n, generator=g) * 0.02 + 0.001,
        "zero_point": torch.randint(info.min, info.max + 1, (count,), generator=g, dtype=torch.int32),
        "bias": torch.randn(n, generator=g),
        "out_dtype": out_dtype,
    }
    if out_dtype in INT8:
        out["scale_out"] = torch.tensor([0.011 * max(depth, 1) ** 0.5])
        out["zero_point_out"] = torch.tensor([3 if out_dtype == torch.int8 else 130], dtype=torch.int32)
    return out


def assert_same(got: Tensor, want: Tensor, activation: str = "none") -> None:
    """Equal to the bit (NaN equals NaN); behind GELU and SiLU within an int8 step or a few float32 roundings."""
    assert got.dtype == want.dtype and got.shape == want.shape and got.stride() == want.stride()
    if activation not in ("gelu", "silu"):
        bits = torch.int32 if want.dtype == torch.float32 else want.dtype
        same = (got.view(bits) == want.view(bits)) | (got.isnan() & want.isnan())
        assert same.all(), (
            f"{int((~same).sum())} of {same.numel()} differ, first {got[~same][0]} against {want[~same][0]}"
        )
    elif want.dtype == torch.float32:
        torch.testing.assert_close(got, want, rtol=2e-6, atol=2e-6, equal_nan=True)
    else:
        assert (got.int() - want.int()).abs().max() <= 1
