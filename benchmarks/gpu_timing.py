"""Times on a GPU: CUDA graphs and events, over inputs that rotate through more memory than the L2 cache holds."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

Call = Callable[[], object]
_L2_TIMES = 3  # the rotation covers this many L2 caches, so that each call finds its inputs cold
_FIELDS = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.draw,power.limit,temperature.gpu"


def rotation(bytes_per_call: int, device: torch.device) -> int:
    """How many sets of inputs a cold measurement needs."""
    if device.type != "cuda":
        return 2
    l2 = torch.cuda.get_device_properties(device).L2_cache_size
    return max(2, min(64, -(-_L2_TIMES * l2 // max(1, bytes_per_call)) + 1))


def time_calls(calls: Sequence[Call], device: torch.device, target_s: float = 0.05) -> dict[str, Any]:
    """Time calls that do the same work on different inputs.

    Returns:
        {ms, min_ms, mode}: the median and least time of one call over 9 trials of about `target_s`; `mode` is
        "graph", "wall" without a GPU, or "events: why" where the calls cannot be captured.
    """
    run, mode = recorded(calls, device)
    trials, least = (9, target_s) if device.type == "cuda" else (3, 0.0)
    once = run_ms(run, 1, device)
    rounds = max(1, min(1000, int(least * 1e3 / max(once, 1e-3))))
    return _summary([run_ms(run, rounds, device) for _ in range(trials)], len(calls), mode)


def recorded(calls: Sequence[Call], device: torch.device) -> tuple[Call, str]:
    """All calls as one, warmed up: the replay of a CUDA graph where that is possible; and how it runs."""
    for call in calls:
        call()

    def plain() -> None:
        for call in calls:
            call()

    if device.type != "cuda":
        return plain, "wall"
    torch.cuda.synchronize()
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            plain()
    except Exception as error:
        torch.cuda.synchronize()
        return plain, f"events: {str(error).splitlines()[0]}"
    graph.replay()
    return graph.replay, "graph"


def run_ms(run: Call, rounds: int, device: torch.device) -> float:
    """Milliseconds of one `run`, the mean of `rounds` in a row."""
    if device.type != "cuda":
        start_s = time.perf_counter()
        for _ in range(rounds):
            run()
        return (time.perf_counter() - start_s) * 1e3 / rounds
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(rounds):
        run()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / rounds


def _summary(totals_ms: list[float], calls: int, mode: str) -> dict[str, Any]:
    return {"ms": statistics.median(totals_ms) / calls, "min_ms": min(totals_ms) / calls, "mode": mode}


def gpu_state() -> dict[str, str]:
    """Clocks, power and temperature now, as nvidia-smi tells them; its error where it does not."""
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={_FIELDS}", "--format=csv,noheader"],
            capture_output=True, text=True, check=True, timeout=30,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        return {"error": str(error)}
    return dict(zip(_FIELDS.split(","), done.stdout.splitlines()[0].split(", "), strict=False))
