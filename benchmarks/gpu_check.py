"""`make gpu-check`: the CUDA kernels on a real GPU, right and fast, and the baselines they compete with, in one JSON.

The JSON goes to $OUT or benchmarks/results. Exit status: 0 where every check passed, 1 where one
failed, 2 without a GPU.
`--dry-run` walks the same code over small CPU tensors; its times mean nothing and no file is written.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch

import gpu_baselines
import gpu_correctness
from gpu_timing import gpu_state, rotation, time_calls
from torchaccel import _native, ops

_LIMIT_S = 400.0


def quantize_times(device: torch.device, quick: bool) -> list[dict[str, Any]]:
    """quantize_int8 and quantize_int8_dynamic against a device copy that moves as many bytes."""
    results = []
    shapes = (
        [(64, 256)] if quick else [(65536, 256), (32768, 1024), (8192, 4096), (8192, 8192), (2048, 16384), (512, 65536)]
    )
    for rows, k in shapes:
        for dtype in gpu_correctness.FLOATS:
            n = rows * k
            moved = n * (dtype.itemsize + 1)
            inputs = [torch.randn(rows, k, device=device).to(dtype) for _ in range(rotation(moved, device))]
            scale = torch.tensor([0.03], device=device)
            # A copy reads and writes: half of the bytes each way.
            sources = [torch.zeros(moved // 2, dtype=torch.uint8, device=device) for _ in inputs]
            targets = [torch.empty_like(source) for source in sources]
            copy = time_calls([lambda s=s, t=t: t.copy_(s) for s, t in zip(sources, targets, strict=True)], device)
            forms = {
                "quantize_int8": [lambda x=x, scale=scale: ops.quantize_int8(x, scale) for x in inputs],
                "quantize_int8_dynamic": [lambda x=x: ops.quantize_int8_dynamic(x) for x in inputs],
            }
            for op, calls in forms.items():
                entry: dict[str, Any] = {"op": op, "shape": [rows, k], "dtype": str(dtype), "copy_ms": copy["ms"]}
                try:
                    entry |= time_calls(calls, device)
                    entry["gb_per_s"] = moved / entry["ms"] / 1e6
                    entry["speed_of_copy"] = copy["ms"] / entry["ms"]
                    print(f"  {op} [{rows}, {k}] {dtype}: {entry['gb_per_s']:.0f} GB/s, "
                          f"{entry['speed_of_copy']:.2f} of a copy", flush=True)  # fmt: skip
                except Exception as error:
                    entry["error"] = f"{type(error).__name__}: {str(error)[:500]}"
                    print(f"  {op} [{rows}, {k}] {dtype}: {entry['error']}", flush=True)
                results.append(entry)
    return results


def environment(device: torch.device) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "kernels": _native.status(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
            "cudnn": torch.backends.cudnn.version(),
        }
    try:
        import triton

        facts["triton"] = triton.__version__
    except ImportError as error:
        facts["triton"] = str(error)
    return facts


def write(result: dict[str, Any]) -> Path:
    folder = Path(os.environ.get("OUT") or Path(__file__).parent / "results")
    folder.mkdir(parents=True, exist_ok=True)
    device = result["environment"]["device"].lower().replace(" ", "-")
    path = folder / f"gpu_check-{device}-{result['environment']['date'][:10]}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="small CPU tensors, no file")
    parser.add_argument("--limit", type=float, default=_LIMIT_S, metavar="S", help="seconds after which none starts")
    arguments = parser.parse_args()
    if not arguments.dry_run and not torch.cuda.is_available():
        print(
            f"gpu-check needs a GPU: torch {torch.__version__} sees none (CUDA of torch: {torch.version.cuda})",
            file=sys.stderr,
        )
        return 2
    deadline = time.monotonic() + arguments.limit
    device = torch.device("cpu" if arguments.dry_run else "cuda")
    result: dict[str, Any] = {"environment": environment(device), "gpu_before": gpu_state()}
    print("correctness")
    result["checks"] = gpu_correctness.run(device, arguments.dry_run)
    if not arguments.dry_run:
        write(result)  # what is known survives a later crash
    print("quantize_int8 against a device copy (cold L2)")
    result["quantize"] = quantize_times(device, arguments.dry_run)
    print("baselines (cold L2)")
    result["baselines"] = gpu_baselines.run(device, arguments.dry_run, deadline)
    result["gpu_after"] = gpu_state()
    if not arguments.dry_run:
        print(write(result))
    return 0 if all(check["passed"] for check in result["checks"]) else 1


if __name__ == "__main__":
    sys.exit(main())
