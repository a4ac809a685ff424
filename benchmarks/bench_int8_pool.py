"""int8_max_pool2d, int8_avg_pool2d and int8_add against float32 in channels_last; GB/s count int8 reads and writes."""

import torch
import torch.nn.functional as F

from _common import Bench
from torchaccel import ops


def main() -> None:
    bench = Bench("int8 pooling and addition", "float32, channels_last")
    scale, shift = torch.tensor([0.02]), torch.tensor([3], dtype=torch.int32)
    to_int8 = {"out_dtype": torch.uint8, "scale_out": scale, "zero_point_out": shift}
    for n in (1, 32):
        # ResNet-50's stem and head on 224 x 224 images, and its largest sum.
        q = torch.randint(0, 256, (n, 64, 112, 112), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
        x = q.float()
        steps = {
            "float32": lambda x=x: F.max_pool2d(x, 3, 2, 1),
            "uint8": lambda q=q: ops.int8_max_pool2d(q, (3, 3), (2, 2), (1, 1)),
        }
        bench.row(f"max 3x3/2 N={n} 64x112x112", q.numel() * 1.25 / 1e9, "GB/s", steps)
        q = torch.randint(0, 256, (n, 2048, 7, 7), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
        x = q.float()
        steps = {
            "float32": lambda x=x: F.adaptive_avg_pool2d(x, 1),
            "uint8 to float32": lambda q=q: ops.int8_avg_pool2d(q, scale, shift),
            "uint8 to uint8": lambda q=q: ops.int8_avg_pool2d(q, scale, shift, **to_int8),
        }
        bench.row(f"global average N={n} 2048x7x7", q.numel() / 1e9, "GB/s", steps)
        q = torch.randint(0, 256, (n, 256, 56, 56), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
        x, other = q.float(), q.flip(1)
        y = other.float()
        steps = {
            "float32": lambda x=x, y=y: torch.relu_(x + y),
            "uint8": lambda q=q, r=other: ops.int8_add(q, r, scale, shift, scale, shift, "relu", **to_int8),
        }
        bench.row(f"add, relu N={n} 256x56x56", q.numel() * 3 / 1e9, "GB/s", steps)
    bench.finish()


if __name__ == "__main__":
    main()
