"""A whole network on `optimize`: random weights with settled BatchNorm, pruned by magnitude.

Prints the report's summary, the dense forms, what the model costs on one image beside its kernels (memory, and the
time between operators), and last the optimized model's median milliseconds of a batch. Speed only: random weights have
no accuracy. Baseline: the fastest of eager, channels_last and frozen torch.compile, in turns.

    python -m benchmarks.bench_model --model resnet50 --sparsity 1x4:0.9 --int8 static --batch 16 --threads 2
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

import torchaccel as ta
from torchaccel.workflow.result import Result

sys.path.insert(0, str(Path(__file__).parent))  # also where this runs as a module
from model_costs import memory, overhead
from models import MODELS, settled

INT8 = {"static": ta.Int8Static(), "dynamic": ta.Int8Dynamic(), "none": None}


def sparsity_of(text: str) -> ta.Sparsity | None:
    """`pattern:amount` of any pattern of `Sparsity`, or none."""
    pattern, _, amount = text.rpartition(":")
    try:
        return None if text == "none" else ta.Sparsity(pattern, float(amount))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error


def add_costs(result: Result, name: str, image: torch.Tensor) -> None:
    """Add to the report what the optimized model costs on one image; nothing where a dense form was returned."""
    if not result.passed:
        print("no costs: the model that is returned is a dense form")
        return
    between = overhead(result.model, (image,))
    with tempfile.TemporaryDirectory() as folder:
        peaks = memory(result.model, name, image.shape[-1], Path(folder))
    result.report.data["costs"] = {"overhead": between, "memory": peaks}
    print(f"batch 1: {between['ms']:.2f} ms, outside of operators {between['outside_share']:.1%}")
    for form in ("eager float32", "torchaccel"):
        loading, running = peaks[form]["loading"], peaks[form]["running"]
        print(f"  {form:<14} memory: {loading:6.0f} MiB to load and run once, {running:6.0f} MiB from then on")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="resnet50")
    parser.add_argument("--sparsity", type=sparsity_of, default="1x4:0.9", help="pattern:amount, or none")
    parser.add_argument("--int8", choices=INT8, default="static")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the report there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    inputs = (torch.randn(options.batch, 3, options.size, options.size),)
    model = settled(options.model, options.size)
    result = ta.optimize(model, inputs, sparsity=options.sparsity, int8=INT8[options.int8])
    print(result.report.summary())
    for form in result.report.data["forms"]:
        print(f"{form['form']:<24} {form['latency_ms'] or float('nan'):9.2f} ms  {form['note']}")
    add_costs(result, options.model, inputs[0][:1].clone())
    if options.json:
        result.report.to_json(options.json)
    print(f"{result.report.data['optimized']['latency_ms']:.3f}")


if __name__ == "__main__":
    main()
