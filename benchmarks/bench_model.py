"""A whole ResNet at ImageNet's size: random weights with settled BatchNorm, pruned by magnitude, on `optimize`.

Prints the report's summary, the dense forms, and last the optimized model's median milliseconds of a batch. Speed only:
random weights have no accuracy. Baseline: the fastest of eager, channels_last and frozen torch.compile, in turns.

    python -m benchmarks.bench_model --model resnet50 --sparsity 1x4:0.9 --int8 static --batch 16 --threads 2
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

import torchaccel as ta
from torchaccel.demo import resnet18, resnet50

MODELS = {"resnet18": resnet18, "resnet50": resnet50}
INT8 = {"static": ta.Int8Static(), "dynamic": ta.Int8Dynamic(), "none": None}


def settled(name: str, size: int) -> nn.Module:
    """Random weights in eval mode, BatchNorm settled on noise."""
    torch.manual_seed(0)
    model = MODELS[name](3, 1000).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # those that begin at zero would fold a layer's weights to nothing
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(4, 3, size, size))
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="resnet50")
    parser.add_argument("--sparsity", default="1x4:0.9", help="pattern:amount, or none")
    parser.add_argument("--int8", choices=INT8, default="static")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the report there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sparsity = None
    if arguments.sparsity != "none":
        pattern, _, amount = arguments.sparsity.partition(":")
        sparsity = ta.Sparsity(pattern, float(amount))
    inputs = (torch.randn(arguments.batch, 3, arguments.size, arguments.size),)
    result = ta.optimize(settled(arguments.model, arguments.size), inputs, sparsity=sparsity, int8=INT8[arguments.int8])
    print(result.report.summary())
    for form in result.report.data["forms"]:
        print(f"{form['form']:<24} {form['latency_ms'] or float('nan'):9.2f} ms  {form['note']}")
    if arguments.json:
        result.report.to_json(arguments.json)
    print(f"{result.report.data['optimized']['latency_ms']:.3f}")


if __name__ == "__main__":
    main()
