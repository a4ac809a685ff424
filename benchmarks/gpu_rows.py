"""The measurements behind the table: each group's own form and its opponents, cold L2, in CUDA graphs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise

import torch

import gpu_baselines as baselines
import gpu_ours as ours
from gpu_items import Item, Result, by_wgmma
from gpu_table import COPY, target_of
from gpu_timing import gpu_state, recorded, rotation, run_ms, time_calls

HALVES = (torch.float16, torch.bfloat16)
_LARGE_COPY = 2 << 30  # bytes read and written


@dataclass(frozen=True)
class Measurement:
    group: str
    who: str
    ours: bool
    make: Callable[[], baselines.Made] | None  # None: `size` bytes at the speed of a large copy
    ops: tuple[str, ...] = ()
    size: float = 0.0

    @property
    def facts(self) -> Result:
        return {"group": self.group, "who": self.who, "ours": self.ours}


def items(device: torch.device, quick: bool) -> list[Item]:
    """All measurements; what torch.compile must tune comes last: should time run out, the rest is known."""
    found = list(_measurements(device, quick))
    made = {
        each: Item(f"{each.group}: {each.who}", partial(_measure, each, device, quick), each.ops, each.facts)
        for each in found
    }
    late = [each for each in found if "compiled" in each.who]
    late.sort(key=lambda each: target_of(each.group) is None)
    early = [item for each, item in made.items() if each not in late]
    sweep = Item("t(M+1)/t(M)", partial(_sweep, device, quick), ("int8_linear",))
    ours = [sweep, *(item for each, item in made.items() if each.ours)]
    return [early[0], sweep, *early[1:], *by_wgmma(ours, device), *(made[each] for each in late)]


def _measure(each: Measurement, device: torch.device, quick: bool) -> Result:
    if each.make is None:
        return {"ms": each.size / copy_gb_per_s(device, quick) / 1e6, "mode": "computed"}
    calls, operations, size = each.make()
    found: Result = time_calls(calls, device)
    found |= {"tops": operations / found["ms"] / 1e9, "gb_per_s": size / found["ms"] / 1e6}
    return found | {"gpu": gpu_state()} if device.type == "cuda" else found


@cache
def copy_gb_per_s(device: torch.device, quick: bool) -> float:
    """Bytes read and written by a large copy on the device, a nanosecond."""
    calls, _, size = baselines.copy(device, 1 << 16 if quick else _LARGE_COPY)
    return size / time_calls(calls, device)["ms"] / 1e6


def _measurements(device: torch.device, quick: bool) -> Iterator[Measurement]:
    yield from _linear(device, quick)
    for batch, channels, size in [(2, 128, 8)] if quick else [(256, 256, 14), (256, 128, 28)]:
        yield from _convolution(device, batch, channels, size)
    yield from _memory_bound(device, quick)


def _linear(device: torch.device, quick: bool) -> Iterator[Measurement]:
    op = ("int8_linear",)
    edge, wide = (64, 64) if quick else (8192, 4096)
    group = "int8_linear 8192^3"
    yield Measurement(group, "int8 to bf16", True, partial(ours.linear, device, edge, edge, edge), op)
    for finish in ("eager", "compiled"):
        make = partial(baselines.int_mm, device, edge, edge, edge, finish)
        yield Measurement(group, f"torch._int_mm, {finish} dequantization", False, make)
    for m in (1, 8) if quick else (1, 2, 4, 8):
        group, size = f"int8_linear small M, M={m} N=K={edge}", edge * edge + m * edge * 3
        yield Measurement(group, "int8 to bf16", True, partial(ours.linear, device, m, edge, edge), op)
        yield Measurement(group, COPY, False, None, size=size)
        group = f"linear, weight only, M={m} N=K={edge}"
        make = partial(ours.weight_only, device, m, edge, edge)
        yield Measurement(group, "bf16 by int8", True, make, ("int8_linear_weight_only",))
        yield Measurement(group, "F.linear bf16", False, partial(baselines.linear, device, m, edge, edge, HALVES[1]))
    for m in (32,) if quick else (16, 64, 512, 4096):
        group = f"linear M={m} N=K={wide}"
        yield Measurement(group, "int8 to bf16", True, partial(ours.linear, device, m, wide, wide), op)
        for dtype in HALVES:
            make = partial(baselines.linear, device, m, wide, wide, dtype)
            yield Measurement(group, f"F.linear {dtype}", False, make)
        if m > 16:  # torch._int_mm takes more than 16 rows
            make = partial(baselines.int_mm, device, m, wide, wide, "compiled")
            yield Measurement(group, "torch._int_mm, compiled dequantization", False, make)
    group, m = f"linear 2:4 M=N=K={wide}", wide
    yield Measurement(group, "int8 2:4 to bf16", True, partial(ours.linear, device, m, wide, wide, two_four=True), op)
    yield Measurement(group, "cuSPARSELt int8", False, partial(baselines.sparse_int8, device, m, wide, wide))
    yield Measurement(group, "cuSPARSELt fp16", False, partial(baselines.sparse_linear, device, m, wide, wide))


def _convolution(device: torch.device, batch: int, channels: int, size: int) -> Iterator[Measurement]:
    shape, named = (device, batch, channels, size, 3), f"3x3 C=O={channels} {size}x{size} N={batch}"
    dense = partial(ours.int8_conv, *shape, None)
    yield Measurement(f"int8_conv2d {named}", "int8", True, dense, ("int8_conv2d",))
    for dtype in HALVES:
        yield Measurement(
            f"int8_conv2d {named}", f"cuDNN {dtype}", False, partial(baselines.conv, *shape, dtype, "eager")
        )
    compiled = partial(baselines.conv, *shape, HALVES[0], "compiled")
    yield Measurement(f"int8_conv2d {named}", "compiled fp16", False, compiled)
    for pattern in ("2:4", "tile", "tile+2:4"):
        group = f"{pattern} conv int8 {named}"
        yield Measurement(group, pattern, True, partial(ours.int8_conv, *shape, pattern), ("sparse_int8_conv2d",))
        yield Measurement(group, "own dense int8", False, dense, ("int8_conv2d",))
        for dtype in HALVES:
            group = f"{pattern} conv {str(dtype).removeprefix('torch.')} {named}"
            make = partial(ours.half_conv, *shape, dtype, pattern)
            yield Measurement(group, pattern, True, make, ("sparse_conv2d",))
            yield Measurement(group, f"cuDNN {dtype}", False, partial(baselines.conv, *shape, dtype, "eager"))


def _memory_bound(device: torch.device, quick: bool) -> Iterator[Measurement]:
    """Against the same bytes at the speed of a large copy."""
    shapes = [(64, 256)] if quick else [(65536, 256), (8192, 4096), (8192, 8192), (512, 65536)]
    for rows, k in shapes:
        for dtype in (torch.float32, torch.bfloat16):
            for dynamic in (False, True):
                op = "quantize_int8_dynamic" if dynamic else "quantize_int8"
                group, size = f"{op} [{rows}, {k}] {str(dtype).removeprefix('torch.')}", rows * k * (dtype.itemsize + 1)
                yield Measurement(group, "int8", True, partial(ours.quantize, device, rows, k, dtype, dynamic), (op,))
                yield Measurement(group, COPY, False, None, size=size)
    rows, k = shapes[0] if quick else (8192, 8192)
    batch, edge = (2, 8) if quick else (256, 56)
    images = batch * 64 * edge**2
    for name, op, make, size in (
        (f"rms_norm_quantize_int8 [{rows}, {k}] bfloat16", "norm_quantize_int8_dynamic",
         partial(ours.norm, device, rows, k, HALVES[1]), 3 * rows * k),
        ("int8_max_pool2d 3x3/2", "int8_max_pool2d", partial(ours.max_pool, device, batch, 64, 2 * edge), 5 * images),
        ("int8_avg_pool2d, whole image", "int8_avg_pool2d", partial(ours.avg_pool, device, batch, 2048, 7),
         53 * batch * 2048),
        ("int8_add", "int8_add", partial(ours.add, device, batch, 64, edge), 3 * images),
    ):  # fmt: skip
        yield Measurement(name, "int8", True, make, (op,))
        yield Measurement(name, COPY, False, None, size=size)


def _sweep(device: torch.device, quick: bool) -> Result:
    """t(M+1) / t(M) of int8_linear: for each M the median of five passes over all M, each over cold weights."""
    most, edge, passes = (4, 64, 2) if quick else (512, 4096, 5)
    sets = ours.weights(device, edge, edge, rotation(edge * edge, device))
    runs = [recorded(ours.linear_calls(device, m, sets), device)[0] for m in range(1, most + 2)]
    times = [[run_ms(run, 3, device) / len(sets) for run in runs] for _ in range(passes)]
    median = [statistics.median(each) for each in zip(*times, strict=True)]
    ratios = [after / before for before, after in pairwise(median)]
    worst = max(range(len(ratios)), key=ratios.__getitem__)
    return {"us": [round(ms * 1e3, 3) for ms in median], "worst_ratio": ratios[worst], "worst_m": worst + 1}
