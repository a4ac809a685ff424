"""Checks of the matrix products on a real device: int8, weight-only, 2:4, with every output and activation."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

import gpu_cases as cases
from gpu_items import Item
from torchaccel import ops
from torchaccel.testing import assert_exact_enough

LINEAR, WEIGHT_ONLY = ("int8_linear",), ("int8_linear_weight_only",)
SMALL = [(1, 1), (64, 64), (67, 131), (130, 200), (257, 1003)]  # N, K around the tiles' edges, and primes
LARGE = [(17, 64, 64), (31, 65, 63), (33, 128, 48), (64, 192, 256), (65, 100, 333), (129, 257, 64), (300, 80, 1040)]
DEEP = [(1, 64, 8192), (2, 100, 16384), (8, 130, 4104), (16, 128, 16384), (48, 64, 30000)]  # split along K


def items(device: torch.device, quick: bool) -> list[Item]:
    small, large, deep = (SMALL[2:3], LARGE[1:2], []) if quick else (SMALL, LARGE, DEEP)
    rows = (1, 5, 16) if quick else range(1, 17)
    made = [Item(f"int8_linear: M 1 to 16, N={n} K={k}", partial(_rows, device, rows, n, k), LINEAR) for n, k in small]
    made += [Item(f"int8_linear: M={m} N={n} K={k}", partial(_shape, device, m, n, k), LINEAR) for m, n, k in large]
    made += [
        Item(f"int8_linear: deep, M={m} N={n} K={k}", partial(_shape, device, m, n, k), LINEAR) for m, n, k in deep
    ]
    made += [
        Item("int8_linear: outputs and activations", partial(_outputs, device), LINEAR),
        Item("int8_linear: 2:4 weights", partial(_two_four, device), LINEAR),
        Item("int8_linear: odd views and empty", partial(_views, device), LINEAR),
        Item("int8_linear_weight_only: M 1 to 16", partial(_weight_only_rows, device, rows), WEIGHT_ONLY),
        Item("int8_linear_weight_only: M above 16", partial(_weight_only_many, device), WEIGHT_ONLY),
        Item("int8_linear_weight_only: activations", partial(_weight_only_activations, device), WEIGHT_ONLY),
    ]
    if not quick:
        made.append(Item("int8_linear: 2048 x 2048 x 2048", partial(_shape, device, 2048, 2048, 2048), LINEAR))
    return made


def _linear(
    device: torch.device, m: int, n: int, k: int, seed: int, dtype: torch.dtype = torch.uint8,
    out: torch.dtype = torch.float32, activation: str = "none", per_row: bool = True, two_four: bool = False,
) -> None:  # fmt: skip
    b = cases.integers((n, k), torch.int8, seed + 1, weight=True)
    arguments = {
        "a": cases.integers((m, k), dtype, seed),
        "b": cases.pruned(b, "2:4", seed) if two_four else b,
        **cases.epilogue(n, k, m if per_row else 1, dtype, seed, out, activation),
    }
    name = f"M={m} N={n} K={k} {dtype} {activation} to {out}"
    cases.compare(name, ops.int8_linear, device, arguments)
    packed = ops.pack_int8(arguments["b"].to(device))
    if packed is not None and device.type == "cuda":
        cases.close(
            f"{name}, packed", ops.int8_linear(**cases.on(device, arguments), packed=packed),
            ops.int8_linear(**arguments), activation,
        )  # fmt: skip


def _rows(device: torch.device, rows: range, n: int, k: int) -> None:
    for m in rows:
        for dtype in cases.INT8:
            _linear(device, m, n, k, seed=m, dtype=dtype, per_row=m % 2 == 0)


def _shape(device: torch.device, m: int, n: int, k: int) -> None:
    for dtype in cases.INT8:
        _linear(device, m, n, k, seed=m + n, dtype=dtype, out=torch.int8 if dtype == torch.int8 else torch.float32)


def _outputs(device: torch.device) -> None:
    for m in (3, 70):
        for out in (*cases.FLOATS, *cases.INT8):
            for activation in cases.ACTIVATIONS:
                _linear(device, m, 71, 130, seed=m, out=out, activation=activation)


def _two_four(device: torch.device) -> None:
    for m, n, k in ((1, 64, 128), (7, 96, 160), (64, 64, 256), (130, 200, 1040)):
        for dtype in cases.INT8:
            _linear(device, m, n, k, seed=k, dtype=dtype, two_four=True)
            _linear(device, m, n, k, seed=k, dtype=dtype, two_four=True, out=torch.bfloat16, activation="gelu")


def _views(device: torch.device) -> None:
    memory = cases.integers((9 * 130 + 1,), torch.uint8, 1)
    b = cases.integers((70, 130), torch.int8, 2, weight=True)
    kept = cases.epilogue(70, 130, 1, torch.uint8, 3, torch.float32, "relu")
    views = {
        "offset": memory[1:].view(9, 130),
        "transposed": memory[1:].view(130, 9).t(),
        "every other row": memory[:-1].view(9, 130)[::2],
        "more dimensions": memory[1:].view(3, 3, 130),
        "no rows": memory[:0].view(0, 130),
    }
    for name, a in views.items():
        want = ops.int8_linear(a, b, **kept)
        source = torch.empty_strided(memory.shape, (1,), dtype=torch.uint8, device=device).copy_(memory)
        moved = source.as_strided(a.shape, a.stride(), a.storage_offset())  # the same address within its memory
        cases.close(name, ops.int8_linear(moved, b.to(device), **cases.on(device, kept)), want)


def _weight_only(device: torch.device, m: int, n: int, k: int, dtype: torch.dtype, activation: str) -> None:
    x, b = cases.floats((m, k), dtype, m), cases.integers((n, k), torch.int8, n, weight=True)
    scale = torch.rand(n, generator=torch.Generator().manual_seed(k)) * 0.01 + 0.001
    bias = cases.floats((n,), torch.float32, 5)
    got = ops.int8_linear_weight_only(*(t.to(device) for t in (x, b, scale, bias)), activation).cpu()
    weight = b.double() * scale.double()[:, None]
    act = {"none": lambda y: y, "relu": torch.relu, "gelu": F.gelu, "silu": F.silu}[activation]
    exact = act(F.linear(x.double(), weight, bias.double()))
    magnitude = F.linear(x.double().abs(), weight.abs(), bias.double().abs())
    pytorch = None
    if dtype != torch.float32:
        pytorch = act(F.linear(x, weight.to(dtype), bias.to(dtype)))
    assert_exact_enough(got, exact, magnitude, k, pytorch)


def _weight_only_rows(device: torch.device, rows: range) -> None:
    for m in rows:
        for n, k in ((64, 64), (130, 200), (67, 131), (64, 8192)):
            for dtype in cases.FLOATS:
                _weight_only(device, m, n, k, dtype, "none")


def _weight_only_many(device: torch.device) -> None:
    for m, n, k in ((33, 130, 200), (129, 64, 1040), (300, 257, 64)):
        for dtype in cases.FLOATS:
            _weight_only(device, m, n, k, dtype, "none")


def _weight_only_activations(device: torch.device) -> None:
    for activation in ("relu", "gelu", "silu"):
        for dtype in cases.FLOATS:
            _weight_only(device, 3, 70, 256, dtype, activation)
