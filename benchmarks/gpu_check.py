"""`make gpu-check`: the CUDA kernels on a real GPU, right and fast, against what they compete with, in one JSON.

In this order: each PTX wrapper; each op against its reference, with compute-sanitizer beside it; measurements and their
table; ResNet-50. Each part runs in processes of its own, so that a crash costs one item, and until a deadline of its
own. The JSON is rewritten as results come, in $OUT or benchmarks/results. Exit status: 0 where every check passed, 1
where one failed, 2 without a GPU.

`--dry-run` walks the same code over small CPU tensors; its times mean nothing and no file is written.
`--record JSON` makes the PTX outputs in a JSON of this program the committed ones; it needs no GPU.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "build/cuda/libtorchaccel_cuda.so"
sys.path.insert(0, str(ROOT))
if LIBRARY.exists():
    os.environ.setdefault("TORCHACCEL_CUDA_LIBRARY", str(LIBRARY))

import torch  # noqa: E402

import gpu_checks  # noqa: E402
import gpu_models  # noqa: E402
import gpu_ptx  # noqa: E402
import gpu_rows  # noqa: E402
import gpu_sanitize  # noqa: E402
import gpu_table  # noqa: E402
from gpu_items import FAILED, NO_KERNEL, OK, BrokenDeviceError, Item, Result, run_items, shown  # noqa: E402
from gpu_section import BROKEN, run_section  # noqa: E402
from gpu_timing import gpu_state  # noqa: E402
from torchaccel import _native  # noqa: E402

# What each part is, the second since the start at which it is over, and the seconds that one of its items may take.
PARTS: dict[str, tuple[Callable[[torch.device, bool], list[Item]], float, float]] = {
    "ptx": (gpu_ptx.items, 40, 20),
    "checks": (gpu_checks.items, 150, 40),
    "rows": (gpu_rows.items, 310, 90),
    "models": (gpu_models.items, 460, 150),
}
CHECKS = ("ptx", "checks", "sanitizer")
_SANITIZER_S = 170


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


def write(result: dict[str, Any], name: str = "gpu_check") -> Path:
    """Replace the JSON by what is known now."""
    folder = Path(os.environ.get("OUT") or Path(__file__).parent / "results")
    folder.mkdir(parents=True, exist_ok=True)
    device = result["environment"]["device"].lower().replace(" ", "-")
    path = folder / f"{name}-{device}-{result['environment']['date'][:10]}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(path)
    return path


def in_process(part: str, device: torch.device, until: float, results: Path | None, quick: bool) -> list[Result]:
    """Run a part here; each result, and the name of each item before it starts, is a line of `results`."""
    collected: list[Result] = []

    def note(line: dict[str, Any]) -> None:
        if results is not None:
            with results.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def emit(result: Result) -> None:
        print(shown(result), flush=True)
        collected.append(result)
        note(result)

    lines = [json.loads(line) for line in results.read_text().splitlines()] if results is not None else []
    done = {line.get("name", line.get("begin")) for line in lines}
    run_items(PARTS[part][0](device, quick), device, until, emit, lambda name: note({"begin": name}), done)
    return collected


def summary(result: dict[str, Any]) -> str:
    """What matters, for the end of the log."""
    lines = []
    for part in CHECKS:
        entries = result.get(part, [])
        counts = {status: sum(each["status"] == status for each in entries) for status in (OK, FAILED, NO_KERNEL)}
        others = len(entries) - sum(counts.values())
        lines.append(f"{part}: {', '.join(f'{n} {status}' for status, n in counts.items())}, {others} not run")
        lines += [
            f"  {each['status']}: {each['name']}: {each['detail'][:300]}"
            for each in entries
            if each["status"] == FAILED
        ]
    lines.append(gpu_table.text(result.get("table", [])))
    lines += [
        f"{each['name']}, N=K=4096: at most {each['worst_ratio']:.3f}, at M={each['worst_m']} (asked: 1.15)"
        for each in result.get("rows", [])
        if "worst_ratio" in each
    ]
    return "\n".join(lines)


def _noted(result: dict[str, Any], part: str, line: Result) -> None:
    result[part].append(line)
    write(result)


def check_all(device: torch.device, quick: bool, limit: float, chosen: list[str]) -> dict[str, Any]:
    start = time.monotonic()
    result: dict[str, Any] = {"environment": environment(device), "gpu_before": gpu_state()}
    sanitizers = None
    if not quick and "checks" in chosen:
        sanitizers = gpu_sanitize.Sanitizers(Path(__file__), start + min(_SANITIZER_S, limit))
    for part in chosen:
        until = start + min(PARTS[part][1], limit)
        print(f"{part} (until {until - start:.0f} s, now {time.monotonic() - start:.0f} s)", flush=True)
        if quick:
            result[part] = in_process(part, device, until, None, quick)
        else:
            result[part] = []
            command = [sys.executable, __file__, "--part", part]
            run_section(command, until, PARTS[part][2], partial(_noted, result, part))
        if part == "checks" and sanitizers is not None:
            result["sanitizer"] = sanitizers.results()
            print("\n".join(shown(each) for each in result["sanitizer"]), flush=True)
    if quick:
        gpu_sanitize.child(device)
    measured = [each for part in ("rows", "models") for each in result.get(part, [])]
    result |= {"table": gpu_table.rows(measured), "gpu_after": gpu_state(), "seconds": time.monotonic() - start}
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="small CPU tensors, no file")
    parser.add_argument("--record", type=Path, metavar="JSON", help="commit the PTX outputs of an earlier run")
    parser.add_argument("--limit", type=float, default=460.0, metavar="S", help="seconds after which none starts")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=" ".join(PARTS))
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--sanitize-child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.record is not None:
        print(gpu_ptx.record(json.loads(arguments.record.read_text())))
        return 0
    if not arguments.dry_run and not torch.cuda.is_available():
        seen = f"torch {torch.__version__} sees none (CUDA of torch: {torch.version.cuda})"
        print(f"gpu-check needs a GPU: {seen}", file=sys.stderr)
        return 2
    device = torch.device("cpu" if arguments.dry_run else "cuda")
    if arguments.sanitize_child:
        gpu_sanitize.child(device)
        return 0
    if arguments.part is not None:
        try:
            in_process(arguments.part, device, arguments.until, arguments.results, arguments.dry_run)
        except BrokenDeviceError:
            return BROKEN
        return 0
    result = check_all(device, arguments.dry_run, arguments.limit, arguments.only)
    print(summary(result))
    print("a dry run: the times mean nothing" if arguments.dry_run else write(result))
    failed = any(each["status"] == FAILED for part in CHECKS for each in result.get(part, []))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
