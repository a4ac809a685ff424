"""sparse_conv2d in float32 (random masks) against oneDNN's prepacked dense convolution of the same layers.

GMAC/s count the multiplications of the dense layer. `--sweep` takes the layers from 20% to 95%; the geometric means at
the end tell from which sparsity on they are faster.
"""

from __future__ import annotations

import math

import torch

from _common import RESNET, Bench, Step, conv_name, prepacked_conv
from torchaccel import ops
from torchaccel.ops import blocks
from torchaccel.ops.sparse_conv2d import pack_sparse

STRIDED = ((56, 128, 128, 3, 2), (56, 256, 512, 1, 2), (14, 512, 512, 3, 2))
EXPANDING = ((56, 256, 64, 1, 1), (28, 128, 512, 1, 1), (7, 512, 2048, 1, 1))
SWEEP = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def pruned(weight: torch.Tensor, pattern: str, sparsity: float) -> torch.Tensor:
    rows, columns = blocks.BLOCKS[pattern]
    o, c, kh, kw = weight.shape
    keep = torch.rand(o // rows, c // columns, kh, kw) >= sparsity
    return weight * keep.repeat_interleave(rows, 0).repeat_interleave(columns, 1)


def sparse(
    x: torch.Tensor, weight: torch.Tensor, pattern: str, sparsity: float, bias: torch.Tensor, stride: int, padding: int
) -> Step:
    kernel = (weight.shape[2], weight.shape[3])
    form = blocks.to_blocks(pruned(weight, pattern, sparsity), pattern)
    packed = pack_sparse(*form, weight.shape[1], kernel)
    assert packed is not None
    geometry = (stride, stride), (padding, padding), (1, 1)
    return lambda: ops.sparse_conv2d(x, *form, kernel, bias, None, *geometry, "relu", packed.tiles)


def main() -> None:
    bench = Bench("sparse_conv2d", "oneDNN float32, prepacked, channels_last", sweep=True)
    forms = [("unstructured", 0.8), ("unstructured", 0.9), ("16x1", 0.8), ("16x1", 0.9)]
    if bench.options.sweep:
        forms = [("unstructured", sparsity) for sparsity in SWEEP]
    for n in (16,) if bench.options.sweep else (1, 16):
        for size, c, o, kernel, stride in (*RESNET, *STRIDED, *EXPANDING):
            padding = kernel // 2
            x, weight, bias = torch.randn(n, c, size, size), torch.randn(o, c, kernel, kernel), torch.randn(o)
            nhwc = x.contiguous(memory_format=torch.channels_last)
            steps = {"oneDNN": prepacked_conv(nhwc, weight, bias, stride, padding)}
            for pattern, sparsity in forms:
                steps[f"{pattern} {sparsity:.0%}"] = sparse(x, weight, pattern, sparsity, bias, stride, padding)
            out = (size + 2 * padding - kernel) // stride + 1
            bench.row(
                conv_name(n, size, c, o, kernel, stride), n * out * out * o * c * kernel**2 / 1e9, "GMAC/s", steps
            )
    bench.finish()
    for step in dict.fromkeys(row["step"] for row in bench.rows):
        ratios = [row["ratio"] for row in bench.rows if row["step"] == step]
        print(f"{step:20s} geometric mean {math.exp(sum(map(math.log, ratios)) / len(ratios)):.2f}x")


if __name__ == "__main__":
    main()
