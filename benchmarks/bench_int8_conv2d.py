"""int8_conv2d, int8 in and out with ReLU, against oneDNN's prepacked float32 convolution on ResNet layers."""

import torch

from _common import RESNET, Bench, conv_name, eager_conv, prepacked_conv
from torchaccel import ops


def main() -> None:
    bench = Bench("int8_conv2d", "oneDNN float32 prepacked")
    for n in (1, 16):
        for size, c, o, kernel, stride in RESNET:
            x = torch.randn(n, c, size, size).contiguous(memory_format=torch.channels_last)
            weight, bias, padding = torch.randn(o, c, kernel, kernel), torch.randn(o), kernel // 2
            a = torch.randint(0, 256, x.shape, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
            b = torch.randint(-127, 128, weight.shape, dtype=torch.int8)
            packed, colsum = ops.pack_int8(b.permute(0, 2, 3, 1).flatten(1)), b.sum((1, 2, 3), dtype=torch.int32)
            scale_a, scale_b, scale_out = torch.tensor([0.02]), torch.rand(o) * 0.01, torch.tensor([0.5])

            def step(
                a=a,
                b=b,
                packed=packed,
                colsum=colsum,
                bias=bias,
                scales=(scale_a, scale_b, scale_out),
                g=(stride, padding),
            ):
                return ops.int8_conv2d(
                    a, b, scales[0], scales[1], None, bias, stride=(g[0],) * 2, padding=(g[1],) * 2, activation="relu",
                    out_dtype=torch.uint8, scale_out=scales[2], colsum=colsum, packed=packed,
                )  # fmt: skip

            out = (size + 2 * padding - kernel) // stride + 1
            steps = {
                "oneDNN": prepacked_conv(x, weight, bias, stride, padding),
                "eager": eager_conv(x, weight, bias, stride, padding),
                "int8": step,
            }
            bench.row(
                conv_name(n, size, c, o, kernel, stride), n * out * out * o * c * kernel**2 / 1e9, "GMAC/s", steps
            )
    bench.finish()


if __name__ == "__main__":
    main()
