"""What the CUDA kernels compete with, timed on this GPU: int8, half and 2:4 products, convolutions, torch.compile.

Each baseline runs by itself; one that fails has its error in the result, in place of its time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu_timing import Call, rotation, time_calls

HALVES = (torch.float16, torch.bfloat16)
Made = tuple[list[Call], float, float]  # the calls on rotating inputs; operations and bytes of one call
Baseline = tuple[str, dict[str, Any], Callable[[], Made]]


def run(device: torch.device, quick: bool, deadline: float) -> list[dict[str, Any]]:
    """Time every baseline until `deadline` (time.monotonic); what is left then says so."""
    results = []
    # What torch.compile must tune comes last: should time run out, the rest is known.
    for name, facts, make in sorted(_baselines(device, quick), key=lambda entry: "compiled" in entry[1].values()):
        entry: dict[str, Any] = {"baseline": name, **facts}
        if time.monotonic() > deadline:
            entry["error"] = "not run: the time limit was reached"
        else:
            try:
                calls, operations, size = make()
                entry |= time_calls(calls, device)
                entry["tops"] = operations / entry["ms"] / 1e9
                entry["gb_per_s"] = size / entry["ms"] / 1e6
                del calls
            except Exception as error:
                entry["error"] = f"{type(error).__name__}: {str(error)[:500]}"
        if device.type == "cuda":
            torch.cuda.empty_cache()
        results.append(entry)
        shown = entry.get("error") or f"{entry['ms']:.4f} ms, {entry['tops']:.1f} TOPS, {entry['gb_per_s']:.0f} GB/s"
        print(f"  {name} {facts}: {shown}", flush=True)
    return results


def _baselines(device: torch.device, quick: bool) -> Iterator[Baseline]:
    products = [(32, 4096, 4096), (512, 4096, 4096), (4096, 4096, 4096), (8192, 8192, 8192)]
    convolutions = [(256, 256, 14, 3), (256, 128, 28, 3), (1, 256, 14, 3), (1, 128, 28, 3), (256, 256, 14, 1)]
    small = [(1, 8192, 8192), (8, 8192, 8192)]
    if quick:
        products, convolutions, small = [(32, 64, 64)], [(2, 16, 8, 3)], [(1, 64, 64)]
    for m, n, k in products + small:
        shape = {"shape": f"M={m} N={n} K={k}"}
        for dtype in HALVES:
            facts = {**shape, "dtype": str(dtype)}
            yield "F.linear", facts, lambda m=m, n=n, k=k, dtype=dtype: _linear(device, m, n, k, dtype)
    for m, n, k in products:
        shape = {"shape": f"M={m} N={n} K={k}"}
        for finish in ("int32", "eager", "compiled"):
            facts = {**shape, "dtype": "int8", "dequantization": finish}
            yield "torch._int_mm", facts, lambda m=m, n=n, k=k, finish=finish: _int_mm(device, m, n, k, finish)
        facts = {**shape, "dtype": "float16"}
        yield "cuSPARSELt 2:4 linear", facts, lambda m=m, n=n, k=k: _sparse_linear(device, m, n, k)
        facts = {**shape, "dtype": "int8"}
        yield "cuSPARSELt 2:4 int8", facts, lambda m=m, n=n, k=k: _sparse_int8(device, m, n, k)
    for batch, channels, size, kernel in convolutions:
        shape = {"shape": f"N={batch} C=O={channels} {size}x{size} kernel {kernel}x{kernel}"}
        for dtype in HALVES:
            for form in ("cudnn", "compiled") if dtype == torch.float16 else ("cudnn",):
                facts = {**shape, "dtype": str(dtype), "form": form, "epilogue": "bias, residual, ReLU"}
                yield (
                    "conv channels_last",
                    facts,
                    lambda a=(batch, channels, size, kernel), dtype=dtype, form=form: _conv(device, *a, dtype, form),
                )


def _linear(device: torch.device, m: int, n: int, k: int, dtype: torch.dtype) -> Made:
    size = (m * k + n * k + m * n) * dtype.itemsize
    sets = [(_random((m, k), dtype, device), _random((n, k), dtype, device)) for _ in range(rotation(size, device))]
    return [lambda a=a, b=b: F.linear(a, b) for a, b in sets], 2.0 * m * n * k, size


def _int_mm(device: torch.device, m: int, n: int, k: int, finish: str) -> Made:
    """int8 product; "eager" and "compiled" multiply by the scales and add a bias, to bfloat16."""
    size = m * k + n * k + m * n * (4 if finish == "int32" else 2)
    scale_a, scale_b = torch.rand(m, 1, device=device), torch.rand(n, device=device)
    bias = torch.rand(n, device=device)

    def fused(a: Tensor, b: Tensor) -> Tensor:
        return (torch._int_mm(a, b.t()).float() * (scale_a * scale_b) + bias).bfloat16()

    def plain(a: Tensor, b: Tensor) -> Tensor:
        return torch._int_mm(a, b.t())

    forms = {"int32": plain, "eager": fused}
    call = _compile(fused) if finish == "compiled" else forms[finish]
    sets = [(_integers((m, k), device), _integers((n, k), device)) for _ in range(rotation(size, device))]
    return [lambda a=a, b=b: call(a, b) for a, b in sets], 2.0 * m * n * k, size


def _sparse_linear(device: torch.device, m: int, n: int, k: int) -> Made:
    """fp16 with a 2:4 weight; operations are counted as of the dense product."""
    from torch.sparse import SparseSemiStructuredTensor, to_sparse_semi_structured

    SparseSemiStructuredTensor._FORCE_CUTLASS = False
    size = (m * k + m * n) * 2 + n * k * 9 // 8
    keep = torch.tensor([1, 1, 0, 0], device=device, dtype=torch.float16).repeat(k // 4)
    sets = [
        (
            _random((m, k), torch.float16, device),
            to_sparse_semi_structured(_random((n, k), torch.float16, device) * keep),
        )
        for _ in range(rotation(size, device))
    ]
    return [lambda a=a, b=b: F.linear(a, b) for a, b in sets], 2.0 * m * n * k, size


def _sparse_int8(device: torch.device, m: int, n: int, k: int) -> Made:
    size = m * k + m * n * 2 + n * k * 5 // 8
    keep = torch.tensor([1, 1, 0, 0], device=device, dtype=torch.int8).repeat(k // 4)
    sets = [
        (torch._cslt_compress(_integers((n, k), device) * keep), _integers((m, k), device))
        for _ in range(rotation(size, device))
    ]
    return (
        [lambda a=a, b=b: torch._cslt_sparse_mm(b, a.t(), out_dtype=torch.bfloat16) for b, a in sets],
        2.0 * m * n * k,
        size,
    )


def _conv(
    device: torch.device, batch: int, channels: int, size: int, kernel: int, dtype: torch.dtype, form: str
) -> Made:
    """The convolution of a residual block: bias, residual and ReLU follow it."""
    torch.backends.cudnn.benchmark = True
    shape = (batch, channels, size, size)
    moved = 3 * batch * channels * size * size * dtype.itemsize + channels * channels * kernel * kernel * dtype.itemsize
    bias = _random((channels,), dtype, device)
    weight = _nhwc(_random((channels, channels, kernel, kernel), dtype, device))

    def block(x: Tensor, residual: Tensor) -> Tensor:
        return torch.relu(F.conv2d(x, weight, bias, padding=kernel // 2) + residual)

    call = _compile(block) if form == "compiled" else block
    sets = [
        (_nhwc(_random(shape, dtype, device)), _nhwc(_random(shape, dtype, device)))
        for _ in range(rotation(moved, device))
    ]
    operations = 2.0 * batch * channels * channels * size * size * kernel * kernel
    return [lambda x=x, r=r: call(x, r) for x, r in sets], operations, moved


def _compile(function: Callable) -> Callable:
    torch._dynamo.reset()
    return torch.compile(function, mode="max-autotune-no-cudagraphs", dynamic=False)


def _nhwc(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last)


def _random(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(shape, dtype=dtype, device=device)


def _integers(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.randint(-127, 128, shape, dtype=torch.int8, device=device)
