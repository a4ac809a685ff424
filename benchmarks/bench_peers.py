"""ResNet-50 on this library and on other CPU engines, all on the same cores: images a second over sparsity.

    python -m benchmarks.bench_peers --peers PYTHON --deepsparse PYTHON --json FILE --batch 16 --threads 2

`--peers` is a Python with torch, onnx, onnxruntime, openvino and nncf; `--deepsparse` one with deepsparse 1.8 (Python
3.8 to 3.11). Engines whose Python is not given are left out. All get the same dense network, with random weights and
settled BatchNorm, or the same pruned by magnitude; engines that gain nothing from zeros get the dense one. Each lives
in a process of its own, which sleeps while others are timed; they take turns over the rounds, and each figure is the
median of its rounds. Outputs are held against eager PyTorch in float32. Baseline: the fastest of the others.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import torchaccel as ta
from torchaccel import measure
from torchaccel.compress import finalize_masks_

sys.path.insert(0, str(Path(__file__).parent))  # also where this runs as a module
from _common import child_environment, environment
from models import settled

HERE = Path(__file__).parent
PACKAGES = ("torch", "onnxruntime", "openvino", "nncf", "deepsparse")
EXACT = 0.02  # how far a float32 engine's output may be from eager's, relative to its norm


@dataclass
class Engine:
    """An engine on one network, in its own process."""

    name: str
    dtype: str
    pattern: str
    sparsity: float
    file: str  # of the network, without its suffix
    command: list[str]
    rounds: list[float] = field(default_factory=list)
    moved: float = float("nan")
    failed: str = ""

    @property
    def title(self) -> str:
        return f"{self.name} {self.dtype}, {self.pattern} {self.sparsity:.0%}" if self.sparsity else self.kind

    @property
    def kind(self) -> str:
        return f"{self.name} {self.dtype}"

    @property
    def ours(self) -> bool:
        return self.name == "torchaccel"

    def start(self, threads: int, log: Path) -> None:
        """Start and wait until it is ready: some time their kernels while they load."""
        self.log = log.open("w+")
        variables = child_environment() | {"OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=variables
        )
        if answer := self._answer():
            self.moved = json.loads(answer)["moved"]
            if self.dtype == "float32" and not self.moved < EXACT:
                self.failed = f"its output is {self.moved:.1%} from that of eager PyTorch"

    def time(self, seconds: float) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        if answer := self._answer():
            self.rounds.append(float(answer))

    def _answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.log.seek(0)
            self.failed = (self.log.read().strip().splitlines() or ["it ended without a word"])[-1]
        return line

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.log.close()


def write_networks(folder: Path, batch: int, wanted: set[tuple[str, float]]) -> None:
    """The images, and each network's weights and its output in eager float32."""
    dense = settled("resnet50", 224)
    images = torch.randn(batch, 3, 224, 224)
    np.save(folder / "input.npy", images.numpy())
    for pattern, amount in sorted(wanted):
        model = copy.deepcopy(dense)
        if amount:
            ta.sparsify_(model, ta.Sparsity(pattern, amount))
            finalize_masks_(model)
        torch.save(model.state_dict(), folder / f"{network(pattern, amount)}.pt")
        with measure.inference():
            y = model.to(memory_format=torch.channels_last)(images)
        np.save(folder / f"{network(pattern, amount)}.npy", y.numpy())


def network(pattern: str, amount: float) -> str:
    return f"{pattern}-{round(100 * amount)}" if amount else "dense"


def engines(options: argparse.Namespace, folder: Path) -> list[Engine]:
    """All that take part, ours first."""
    rest = [str(folder / "input.npy"), str(options.threads)]
    made = []

    def ours(name: str, dtype: str, form: str, pattern: str, amount: float) -> None:
        file = network(pattern, amount)
        command = [sys.executable, str(HERE / "peer_ours.py"), form, str(folder / f"{file}.pt"), *rest]
        made.append(Engine(name, dtype, pattern, amount, file, command))

    def other(python: str | None, name: str, dtype: str, engine: str, amount: float = 0.0, model: str = "") -> None:
        if python is not None:
            file = network("unstructured", amount)
            command = [python, str(HERE / "peer_engines.py"), engine, str(folder / f"{file}{model}.onnx"), *rest]
            made.append(Engine(name, dtype, "unstructured", amount, file, command))

    for amount in (0.0, *options.sparsity):
        ours("torchaccel", "int8", "int8", options.int8_pattern, amount)
    for amount in options.sparsity:
        ours("torchaccel", "float32", "float32", options.float_pattern, amount)
    ours("torch.compile", "float32", "torch.compile", "unstructured", 0.0)
    other(options.peers, "ONNX Runtime", "float32", "onnxruntime")
    other(options.peers, "ONNX Runtime", "int8", "onnxruntime", model="-int8")
    for dtype in ("float32", "bfloat16", "int8"):
        other(options.peers, "OpenVINO", dtype, f"openvino {dtype}")
    for amount in (0.0, *options.sparsity):
        other(options.deepsparse, "DeepSparse", "float32", "deepsparse", amount)
        other(options.deepsparse, "DeepSparse", "int8", "deepsparse", amount, model="-int8")
    return made


def versions(*pythons: str | None) -> dict[str, str]:
    """Of the packages in the other Pythons."""
    code = (
        "import importlib.metadata as m, json\n"
        f"print(json.dumps({{d.name: d.version for d in m.distributions() if d.name in {PACKAGES}}}))"
    )
    found: dict[str, str] = {}
    for python in filter(None, pythons):
        found |= json.loads(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout)
    return found


def measured(options: argparse.Namespace, folder: Path) -> list[Engine]:
    """Build all networks and engines, then time them in turns."""
    everyone = engines(options, folder)
    wanted = {(engine.pattern, engine.sparsity) for engine in everyone if engine.sparsity} | {("unstructured", 0.0)}
    write_networks(folder, options.batch, wanted)
    if options.peers:
        names = sorted({engine.file for engine in everyone if engine.pattern == "unstructured"})
        command = [options.peers, str(HERE / "peer_engines.py"), "export", str(folder), *names]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    started = []
    try:
        for i, engine in enumerate(everyone):
            started.append(engine)
            engine.start(options.threads, folder / f"{i}.log")
            print(f"ready: {engine.title}" + f"  failed: {engine.failed}" * bool(engine.failed), flush=True)
        for number in range(options.rounds):
            for engine in everyone:
                if not engine.failed:
                    engine.time(options.seconds)
            print(f"round {number + 1} of {options.rounds}", flush=True)
    finally:
        for engine in started:
            engine.stop()
    return everyone


def report(everyone: list[Engine], batch: int) -> list[dict[str, Any]]:
    """A row an engine, the fastest first; the ratio is against the fastest of the others."""
    ran = [engine for engine in everyone if engine.rounds and not engine.failed]
    ms = {id(engine): statistics.median(engine.rounds) for engine in ran}
    best = min((engine for engine in ran if not engine.ours), key=lambda engine: ms[id(engine)])
    print(f"\nbaseline: {best.title}, {ms[id(best)]:.2f} ms")
    rows = []
    for engine in sorted(ran, key=lambda engine: ms[id(engine)]):
        t = ms[id(engine)]
        rows.append(
            {
                "engine": engine.name, "dtype": engine.dtype, "pattern": engine.pattern if engine.sparsity else None,
                "sparsity": engine.sparsity, "ms": t, "images_per_s": batch / t * 1e3, "ratio": ms[id(best)] / t,
                "rounds": engine.rounds, "moved": engine.moved,
            }
        )  # fmt: skip
        spread = f"{min(engine.rounds):.2f} to {max(engine.rounds):.2f}"
        print(
            f"{engine.title:<42}{t:9.2f} ms {batch / t * 1e3:9.1f} images/s {ms[id(best)] / t:6.2f}x  "
            f"rounds {spread}, output moved {engine.moved:.2%}"
        )
    for engine in everyone:
        if engine.failed:
            print(f"{engine.title:<42} did not run: {engine.failed}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peers", help="a Python with torch, onnx, onnxruntime, openvino and nncf")
    parser.add_argument("--deepsparse", help="a Python with deepsparse; needs --peers, which writes its networks")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.8, 0.9, 0.95])
    parser.add_argument("--int8-pattern", default="1x4", help="of torchaccel's int8 networks")
    parser.add_argument("--float-pattern", default="unstructured", help="of torchaccel's float32 networks")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="for an engine in a round")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.deepsparse and not options.peers:
        parser.error("--deepsparse needs --peers")
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        everyone = measured(options, Path(folder))
    rows = report(everyone, options.batch)
    if options.json:
        facts = {"model": "ResNet-50, 224x224", "batch": options.batch, "environment": environment()}
        facts |= {"versions": versions(options.peers, options.deepsparse), "rows": rows}
        facts["failed"] = {engine.title: engine.failed for engine in everyone if engine.failed}
        options.json.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
