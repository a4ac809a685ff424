"""compute-sanitizer over a few small calls of each kernel: memcheck, racecheck, initcheck, synccheck, side by side.

The child calls the ops on tensors that come from the CPU, so that nearly all that runs is this package's.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

import torch

import gpu_cases as cases
from gpu_items import FAILED, NOT_RUN, OK, PRODUCTS, Result, has_wgmma
from torchaccel import ops
from torchaccel.ops import _tiles, blocks

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
FINISHED = "sanitize: all calls were made"


class Sanitizers:
    """The four tools, each over a process of its own; they run while the checks do."""

    def __init__(self, script: Path, deadline: float) -> None:
        self.start = time.monotonic()
        self.deadline = deadline
        self.found = shutil.which("compute-sanitizer", path=f"{os.environ.get('PATH', '')}:/usr/local/cuda/bin")
        self.running = {} if self.found is None else {tool: self._begin(tool, script) for tool in TOOLS}

    def _begin(self, tool: str, script: Path) -> tuple[subprocess.Popen, IO[str]]:
        assert self.found is not None
        log = tempfile.TemporaryFile("w+")  # a pipe that nobody reads would fill
        command = [self.found, "--tool", tool, "--error-exitcode", "9", *self._only_ours(tool)]
        # Each tensor its own allocation: an access past its end is no longer within a pool.
        environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        child = subprocess.Popen(
            [*command, sys.executable, str(script), "--sanitize-child"], stdout=log, stderr=subprocess.STDOUT,
            env=environment, start_new_session=True,
        )  # fmt: skip
        return child, log

    def _only_ours(self, tool: str) -> list[str]:
        """Kernels of other libraries are left out, but for initcheck, which has to see who writes."""
        if tool == "initcheck":
            return []
        usage = subprocess.run([str(self.found), "--help"], capture_output=True, text=True).stdout
        option = next((name for name in ("--kernel-name", "--kernel-regex") if name in usage), None)
        return [] if option is None else [option, "kns=torchaccel"]

    def results(self) -> list[Result]:
        """Wait for all, until the deadline at most."""
        if self.found is None:
            return [_result(tool, NOT_RUN, "compute-sanitizer is not on PATH", self.start) for tool in TOOLS]
        return [self._wait(tool) for tool in self.running]

    def _wait(self, tool: str) -> Result:
        child, log = self.running[tool]
        try:
            code = child.wait(timeout=max(1.0, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, 9)
            child.wait()
            code = None
        log.seek(0)
        text = log.read()
        return judged(tool, code, text, self.start)


def judged(tool: str, code: int | None, text: str, start: float) -> Result:
    """What a tool's exit status (None: stopped) and words mean."""
    tail = text[-1500:]
    if code is None:
        return _result(tool, NOT_RUN, f"stopped at the time limit; {tail}", start)
    summary = re.search(r"(ERROR|RACECHECK) SUMMARY: (\d+)", text)
    if code == 0 and FINISHED in text and summary is not None and summary[2] == "0":
        return _result(tool, OK, "", start)
    if summary is None:
        return _result(tool, NOT_RUN, f"exit status {code}, the tool did not work here; {tail}", start)
    errors = "\n".join(line for line in text.splitlines() if line.startswith("=========") and line.strip("= "))
    return _result(tool, FAILED, f"exit status {code}: {errors[:3000]}", start)


def _result(tool: str, status: str, detail: str, start: float) -> Result:
    return {
        "name": f"compute-sanitizer {tool}",
        "status": status,
        "detail": detail,
        "s": round(time.monotonic() - start, 1),
    }


def child(device: torch.device) -> None:
    """A few small calls of each op that has a kernel on `device`, products by each instruction that it has."""
    calls = _calls(device)
    for isa in ("mma", "wgmma") if has_wgmma(device) else ("mma",):
        os.environ["TORCHACCEL_CUDA_ISA"] = isa
        for op in calls if isa == "mma" else sorted(PRODUCTS):
            if device.type != "cuda" or ops.has_kernel(op, device):
                calls[op]()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    print(FINISHED, flush=True)


def _calls(device: torch.device) -> dict[str, Any]:
    return {
        "quantize_int8": lambda: [
            ops.quantize_int8(_float((3, 1000), dtype, device), _one(device, 0.03)) for dtype in cases.FLOATS
        ],
        "quantize_int8_dynamic": lambda: [
            ops.quantize_int8_dynamic(_float((3, k), torch.float16, device)) for k in (7, 1024, 20000)
        ],
        "int8_linear": lambda: [
            _linear(device, *shape) for shape in ((1, 70, 131), (7, 64, 2048), (33, 130, 208), (200, 140, 320))
        ],
        "int8_linear_weight_only": lambda: [_weight_only(device, m, 70, 208) for m in (1, 5, 40)],
        "int8_conv2d": lambda: [_conv(device, c, k, stride) for c, k, stride in ((3, 3, 1), (64, 3, 2), (32, 1, 1))],
        "sparse_int8_conv2d": lambda: [_sparse(device, pattern) for pattern in ("1x4", "2:4", "tile", "tile+2:4")],
        "sparse_conv2d": lambda: [_sparse_half(device, pattern) for pattern in ("2:4", "tile")],
        "int8_max_pool2d": lambda: ops.int8_max_pool2d(_image(device), (3, 3), (2, 2), (1, 1)),
        "int8_avg_pool2d": lambda: ops.int8_avg_pool2d(_image(device), _one(device, 0.1)),
        "int8_add": lambda: ops.int8_add(_image(device), _image(device), *[_one(device, 0.1), None] * 2),
        "norm_quantize_int8": lambda: ops.layer_norm_quantize_int8(
            _float((5, 1000), torch.float16, device), scale=_one(device, 0.03)
        ),
        "norm_quantize_int8_dynamic": lambda: ops.rms_norm_quantize_int8(_float((5, 1000), torch.float16, device)),
    }  # fmt: skip


def _one(device: torch.device, value: float) -> torch.Tensor:
    return torch.tensor([value]).to(device)


def _float(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return cases.floats(shape, dtype, 1).to(device)


def _image(device: torch.device) -> torch.Tensor:
    return cases.integers((2, 20, 9, 7), torch.uint8, 1).contiguous(memory_format=torch.channels_last).to(device)


def _packed(matrix: torch.Tensor, device: torch.device) -> dict[str, torch.Tensor | None]:
    """Tiles laid out on the CPU, so that no other kernels run."""
    return {"packed": _tiles.pack(matrix, skip=False).tiles.to(device)} if device.type == "cuda" else {}


def _linear(device: torch.device, m: int, n: int, k: int) -> None:
    b = cases.integers((n, k), torch.int8, 2, weight=True)
    given = cases.epilogue(n, k, m, torch.uint8, 3, torch.int8, "relu") | {"colsum": b.sum(1, dtype=torch.int32)}
    a = cases.integers((m, k), torch.uint8, 1).to(device)
    ops.int8_linear(a, b.to(device), **cases.on(device, given), **_packed(b, device))


def _weight_only(device: torch.device, m: int, n: int, k: int) -> None:
    b = cases.integers((n, k), torch.int8, 2, weight=True).to(device)
    ops.int8_linear_weight_only(_float((m, k), torch.float16, device), b, _float((n,), torch.float32, device))


def _conv(device: torch.device, c: int, k: int, stride: int) -> None:
    b = cases.integers((70, c, k, k), torch.int8, 2, weight=True)
    given = cases.epilogue(70, c * k * k, 1, torch.uint8, 3, torch.uint8, "relu")
    given |= {"colsum": b.sum((1, 2, 3), dtype=torch.int32), "stride": (stride, stride), "padding": (k // 2, k // 2)}
    a = cases.integers((2, c, 9, 7), torch.uint8, 1).contiguous(memory_format=torch.channels_last).to(device)
    ops.int8_conv2d(a, b.to(device), **cases.on(device, given), **_packed(blocks.matrix_of(b), device))


def _sparse(device: torch.device, pattern: str) -> None:
    b = cases.pruned(cases.integers((128, 256, 3, 3), torch.int8, 2, weight=True), pattern, 1)
    given = cases.epilogue(128, 2304, 1, torch.uint8, 3, torch.uint8, "relu") | _compressed(b, pattern, device)
    given["colsum"] = b.sum((1, 2, 3), dtype=torch.int32)
    a = cases.integers((1, 256, 7, 7), torch.uint8, 1).contiguous(memory_format=torch.channels_last).to(device)
    ops.sparse_int8_conv2d(a, kernel_size=(3, 3), padding=(1, 1), **cases.on(device, given))


def _sparse_half(device: torch.device, pattern: str) -> None:
    weight = cases.pruned(cases.floats((128, 128, 3, 3), torch.float16, 2), pattern, 1)
    x = cases.floats((1, 128, 7, 7), torch.float16, 1).contiguous(memory_format=torch.channels_last).to(device)
    given = cases.on(device, _compressed(weight, pattern, device))
    ops.sparse_conv2d(x, kernel_size=(3, 3), padding=(1, 1), **given)


def _compressed(weight: torch.Tensor, pattern: str, device: torch.device) -> cases.Arguments:
    """The blocks of a weight, and for a GPU its tiles, both made on the CPU."""
    given = dict(zip(("values", "columns", "row_offsets"), blocks.to_blocks(weight, pattern), strict=True))
    if device.type == "cuda":
        tiles = _tiles.pack(blocks.matrix_of(weight))
        given |= dict(zip(("packed", "tile_columns", "tile_offsets"), tiles, strict=True))
    return given
