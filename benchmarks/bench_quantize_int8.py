"""quantize_int8 and quantize_int8_dynamic against torch.quantize_per_tensor; GB/s count reads and writes."""

import torch

from _common import Bench
from torchaccel import ops


def main() -> None:
    bench = Bench("quantize_int8", "torch.quantize_per_tensor")
    for rows, k in ((1, 4096), (64, 768), (512, 3072), (4096, 4096)):
        x, scale = torch.randn(rows, k), torch.tensor([0.02])
        steps = {
            "torch": lambda x=x: torch.quantize_per_tensor(x, 0.02, 0, torch.qint8),
            "static": lambda x=x, scale=scale: ops.quantize_int8(x, scale),
            "dynamic int8": lambda x=x: ops.quantize_int8_dynamic(x),
            "dynamic uint8": lambda x=x: ops.quantize_int8_dynamic(x, torch.uint8),
        }
        bench.row(f"[{rows}, {k}]", rows * k * 5 / 1e9, "GB/s", steps)
    bench.finish()


if __name__ == "__main__":
    main()
