"""sparse_int8_conv2d (1x4 and 4x4 blocks, random masks) against the dense int8 convolution of the same layers.

GMAC/s count the multiplications of the dense layer.
"""

import torch

from _common import RESNET, Bench, conv_name, prepacked_conv
from torchaccel import ops
from torchaccel.ops import blocks
from torchaccel.ops.sparse_int8_conv2d import colsum_of


def pruned(weight: torch.Tensor, pattern: str, sparsity: float) -> torch.Tensor:
    rows = blocks.BLOCKS[pattern][0]
    o, c, kh, kw = weight.shape
    keep = torch.rand(o // rows, c // 4, kh, kw) >= sparsity
    return weight * keep.repeat_interleave(rows, 0).repeat_interleave(4, 1)


def main() -> None:
    bench = Bench("sparse_int8_conv2d", "int8_conv2d of this library")
    for n in (1, 16):
        for size, c, o, kernel, stride in RESNET:
            padding = kernel // 2
            a = torch.randint(0, 256, (n, c, size, size), dtype=torch.uint8).contiguous(
                memory_format=torch.channels_last
            )
            b = torch.randint(-127, 128, (o, c, kernel, kernel), dtype=torch.int8)
            packed, colsum = ops.pack_int8(b.permute(0, 2, 3, 1).flatten(1)), b.sum((1, 2, 3), dtype=torch.int32)
            common = dict(
                scale_a=torch.tensor([0.02]), scale_b=torch.rand(o) * 0.01, bias=torch.randn(o), stride=(stride,) * 2,
                padding=(padding,) * 2, activation="relu", out_dtype=torch.uint8, scale_out=torch.tensor([0.5]),
            )  # fmt: skip
            x, weight = torch.randn(a.shape).contiguous(memory_format=torch.channels_last), torch.randn(b.shape)
            steps = {
                "int8": lambda a=a, b=b, p=packed, s=colsum, kw=common: ops.int8_conv2d(a, b, packed=p, colsum=s, **kw),
                "oneDNN float32": prepacked_conv(x, weight, torch.randn(o), stride, padding),
            }
            for pattern, sparsity in (("1x4", 0.9), ("4x4", 0.9), ("1x4", 0.8)):
                form = blocks.to_blocks(pruned(b, pattern, sparsity), pattern)
                sums = colsum_of(form[0], form[2])
                steps[f"{pattern} {sparsity:.0%}"] = lambda a=a, f=form, k=(kernel, kernel), s=sums, kw=common: (
                    ops.sparse_int8_conv2d(a, *f, k, colsum=s, **kw)
                )
            out = (size + 2 * padding - kernel) // stride + 1
            bench.row(
                conv_name(n, size, c, o, kernel, stride), n * out * out * o * c * kernel**2 / 1e9, "GMAC/s", steps
            )
    bench.finish()


if __name__ == "__main__":
    main()
