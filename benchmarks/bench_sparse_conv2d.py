"""sparse_conv2d in float32 (random masks) against oneDNN's prepacked dense convolution of the same layers.

Beside the op, a chain of that one layer, images going into its layout and out of it. GMAC/s count the multiplications
of the dense layer. `--sweep` takes the layers from 20% to 95%, and tells from which sparsity on they are faster, by
geometric means over the layers. The better of op and chain for each layer is what a measured choice would take.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import nn

from _common import RESNET, Bench, Step, conv_name, prepacked_conv
from torchaccel import ops
from torchaccel.graph.chain import chain
from torchaccel.graph.trace import trace
from torchaccel.nn import ConvChain, SparseConv2d
from torchaccel.ops import blocks

STRIDED = ((56, 128, 128, 3, 2), (56, 256, 512, 1, 2), (14, 512, 512, 3, 2))
EXPANDING = ((56, 256, 64, 1, 1), (28, 128, 512, 1, 1), (7, 512, 2048, 1, 1))
SWEEP = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def pruned(weight: torch.Tensor, pattern: str, sparsity: float) -> torch.Tensor:
    rows, columns = blocks.BLOCKS[pattern]
    o, c, kh, kw = weight.shape
    keep = torch.rand(o // rows, c // columns, kh, kw) >= sparsity
    return weight * keep.repeat_interleave(rows, 0).repeat_interleave(columns, 1)


def sparse(conv: nn.Conv2d, pattern: str, sparsity: float) -> SparseConv2d:
    layer = nn.Conv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, device="meta"
    )  # fmt: skip
    layer.weight, layer.bias = nn.Parameter(pruned(conv.weight, pattern, sparsity)), conv.bias
    made = SparseConv2d.from_float(layer, pattern).eval()
    made.fuse_activation("relu")
    return made


def op_of(layer: SparseConv2d, x: torch.Tensor) -> Step:
    return partial(
        ops.sparse_conv2d, x, layer.values, layer.columns, layer.row_offsets, layer.kernel_size, layer.bias, None,
        layer.stride, layer.padding, layer.dilation, layer.activation, layer.packed,
    )  # fmt: skip


def chain_of(layer: SparseConv2d, x: torch.Tensor) -> Step:
    graph = trace(nn.Sequential(layer).eval())
    chain(graph)
    return partial(next(module for module in graph.modules() if isinstance(module, ConvChain)), x)


def steps_of(n: int, conv: nn.Conv2d, size: int, forms: Sequence[tuple[str, float]]) -> dict[str, Step]:
    x = torch.randn(n, conv.in_channels, size, size)
    nhwc = x.contiguous(memory_format=torch.channels_last)
    steps = {"oneDNN": prepacked_conv(nhwc, conv.weight.detach(), conv.bias, conv.stride[0], conv.padding[0])}
    for pattern, sparsity in forms:
        layer, form = sparse(conv, pattern, sparsity), f"{pattern} {sparsity:.0%}"
        steps[form] = op_of(layer, x)
        steps[f"chain, {form}"] = chain_of(layer, x)
    return steps


def with_best(ratios: Mapping[str, float]) -> dict[str, float]:
    """The ratios of a layer's steps, and of the better one of op and chain."""
    best = {
        f"best, {form}": max(ratio, ratios[f"chain, {form}"])
        for form, ratio in ratios.items()
        if f"chain, {form}" in ratios
    }
    return {**ratios, **best}


def means(rows: Sequence[Mapping]) -> dict[str, float]:
    """The geometric mean of each step's ratios over the layers."""
    layers = [
        with_best({row["step"]: row["ratio"] for row in of_shape})
        for _, of_shape in itertools.groupby(rows, lambda row: row["shape"])
    ]
    return {step: math.exp(sum(math.log(layer[step]) for layer in layers) / len(layers)) for step in layers[0]}


def break_even(ratios: Sequence[float]) -> str:
    """From which sparsity of SWEEP on a form is faster, linear in between."""
    points = list(zip(SWEEP, map(math.log, ratios), strict=True))
    for (s0, y0), (s1, y1) in itertools.pairwise(points):
        if y0 < 0 <= y1:
            return f"{s0 + (s1 - s0) * y0 / (y0 - y1):.0%}"
    return f"below {SWEEP[0]:.0%}" if points[0][1] >= 0 else f"above {SWEEP[-1]:.0%}"


def main() -> None:
    bench = Bench("sparse_conv2d", "oneDNN float32, prepacked, channels_last", sweep=True)
    forms = [("unstructured", 0.8), ("unstructured", 0.9), ("16x1", 0.8), ("16x1", 0.9)]
    if bench.options.sweep:
        forms = [("unstructured", sparsity) for sparsity in SWEEP]
    summaries = {}
    for n in (1, 16):
        first = len(bench.rows)
        for size, c, o, kernel, stride in (*RESNET, *STRIDED, *EXPANDING):
            conv = nn.Conv2d(c, o, kernel, stride, kernel // 2).requires_grad_(False)
            nn.init.normal_(conv.weight)
            out = (size + 2 * (kernel // 2) - kernel) // stride + 1
            gmac = n * out * out * o * c * kernel**2 / 1e9
            bench.row(conv_name(n, size, c, o, kernel, stride), gmac, "GMAC/s", steps_of(n, conv, size, forms))
        summaries[n] = means(bench.rows[first:])
    bench.finish()
    for n, summary in summaries.items():
        for step, mean in summary.items():
            print(f"N={n:<2d} {step:25s} geometric mean {mean:.2f}x")
        if bench.options.sweep:
            for kind in ("", "chain, ", "best, "):
                ratios = [summary[f"{kind}unstructured {sparsity:.0%}"] for sparsity in SWEEP]
                print(f"N={n:<2d} {kind}unstructured: faster from {break_even(ratios)} on")


if __name__ == "__main__":
    main()
