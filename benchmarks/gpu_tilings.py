"""Every tiling of a product on a GPU, beside what select.h's cost model expects of it: what its constants are set by.

`make cuda-tilings` builds the libraries without a GPU; `python3 benchmarks/gpu_tilings.py` takes them, prints a table a
shape and writes one JSON in $OUT or benchmarks/results, in two minutes. Times are of whole launches with warm caches.
All tilings must give the same bits; the exit status is 1 where one does not.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/csrc/cuda")]

import gpu_check  # noqa: E402
import product_case  # noqa: E402
from gpu_timing import gpu_state, run_ms  # noqa: E402
from product_case import Case, Planned, Problem  # noqa: E402

Shape = tuple[str, str, Problem]  # library, name, what is multiplied


def shapes(small: bool) -> Iterator[Shape]:
    """Those of the table in README.md, and the layers of a ResNet-50 that differ most from them."""
    for rows, channels, k in [(70, 70, 80)] if small else MATRICES:
        yield "matrix", f"{rows} x {channels} x {k}", matrix(rows, channels, k)
    for batch, channels, size in [(1, 64, 4)] if small else IMAGES:
        dense = image(batch, channels, size)
        named = f"3x3 C=O={channels} {size}x{size} N={batch}"
        yield "image", named, dense
        half = dense.weight.clone()
        half[..., 2::4], half[..., 3::4] = 0, 0
        yield "two_four", f"2:4 {named}", replace(dense, weight=half, two_four=True)
        quarter = dense.weight.clone()
        quarter.view(channels // 64, 64, -1, 64)[:, :, torch.arange(9 * channels // 64) % 4 != 0] = 0
        yield "skip", f"tile at 75% {named}", replace(dense, weight=quarter, skip=True)


MATRICES = [
    (8192, 8192, 8192), (4096, 4096, 4096), (512, 4096, 4096), (128, 4096, 4096), (64, 4096, 4096), (24, 4096, 4096),
    (256 * 56 * 56, 64, 256), (256 * 14 * 14, 1024, 256), (32 * 7 * 7, 2048, 512),
]  # fmt: skip
IMAGES = [(256, 256, 14), (256, 128, 28), (32, 64, 56), (32, 512, 7)]


def matrix(rows: int, channels: int, k: int) -> Problem:
    return described(Problem(integers(1, rows, 1, k), integers(channels, 1, 1, k), matrix=True))


def image(batch: int, channels: int, size: int) -> Problem:
    x, weight = integers(batch, size, size, channels), integers(channels, 3, 3, channels)
    return described(Problem(x, weight, padding=(1, 1), activation="relu"))


def integers(*shape: int) -> torch.Tensor:
    return torch.randint(-127, 128, shape, dtype=torch.int8)


def described(problem: Problem) -> Problem:
    """With the epilogue of a layer whose output is int8, spread over its range."""
    channels, depth = problem.weight.shape[0], problem.weight[0].numel()
    return replace(
        problem, scale_a=torch.tensor([0.015 / depth**0.5]), scale_b=torch.rand(channels), bias=torch.rand(channels),
        out_dtype=torch.int8, scale_out=torch.tensor([1.0]), blocks=0,
    )  # fmt: skip


def measure(library: ctypes.CDLL, problem: Problem, device: torch.device, multiprocessors: int) -> list[dict[str, Any]]:
    """Each tiling: its plan, the expected cycles, milliseconds of a launch, and whether its output is the first's."""
    out = torch.empty(problem.rows, problem.weight.shape[0], dtype=problem.out_dtype, device=device)
    problem = replace(problem, multiprocessors=multiprocessors)
    case, buffers = product_case.fill(replace(problem, tiling=-1), out, lambda tensor: tensor.to(device))
    case.blocks = 0
    planned = Planned()
    chosen = plan(library, case, planned)
    operations = 2.0 * out.numel() * problem.weight[0].numel()
    launches = 16 if device.type == "cuda" else 1  # in a row, on torch's default stream
    found: list[dict[str, Any]] = []
    first = None
    case.tiling = 1 << 20
    for tiling in range(library.product(ctypes.byref(case))):
        case.tiling = tiling
        plan(library, case, planned)
        out.zero_()
        library.product(ctypes.byref(case))
        first = out.clone() if first is None else first
        same = torch.equal(out, first)
        ms = min(run_ms(lambda: library.product(ctypes.byref(case)), launches, device) for _ in range(5))
        found.append({
            "tiling": tiling, "chosen": tiling == chosen, "same": same, "ms": ms, "tops": operations / ms / 1e9,
            **{name: getattr(planned, name) for name, _ in Planned._fields_},
        })  # fmt: skip
    del buffers
    return found


def plan(library: ctypes.CDLL, case: Case, planned: Planned) -> int:
    case.planned = ctypes.pointer(planned)
    tiling = library.product(ctypes.byref(case))
    case.planned = None
    return tiling


def shown(name: str, found: list[dict[str, Any]]) -> str:
    lines = [
        f"{name}",
        f"{'tiling':>14} {'blocks':>7} {'whole':>7} {'cycles':>10} {'us':>9} {'cycles/us':>10} {'TOPS':>7}",
    ]
    for each in sorted(found, key=lambda each: each["ms"]):
        tile = f"{each['channels']}x{each['rows']}{'w' if each['warpgroups'] else ' '}{'*' if each['chosen'] else ' '}"
        us = each["ms"] * 1e3
        lines.append(
            f"{tile:>14} {each['blocks']:>7} {each['whole']:>7} {each['cycles']:>10.0f} {us:>9.2f} "
            f"{each['cycles'] / us:>10.0f} {each['tops']:>7.1f}{'' if each['same'] else '  WRONG'}"
        )
    return "\n".join(lines)


def main() -> int:
    if not torch.cuda.is_available():
        print("gpu_tilings needs a GPU", file=sys.stderr)
        return 2
    device = torch.device("cuda")
    properties = torch.cuda.get_device_properties(device)
    libraries = {name: ctypes.CDLL(str(ROOT / f"build/cuda/libtilings_{name}.so")) for name in LIBRARIES}
    result: dict[str, Any] = {"environment": gpu_check.environment(device), "gpu_before": gpu_state(), "shapes": {}}
    for library, name, problem in shapes(small=False):
        found = measure(libraries[library], problem, device, properties.multi_processor_count)
        result["shapes"][name] = found
        print(shown(name, found), flush=True)
        torch.cuda.synchronize()
    result["gpu_after"] = gpu_state()
    print(gpu_check.write(result, "gpu_tilings"))
    return 0 if all(each["same"] for found in result["shapes"].values() for each in found) else 1


LIBRARIES = ("matrix", "image", "two_four", "skip")

if __name__ == "__main__":
    sys.exit(main())
