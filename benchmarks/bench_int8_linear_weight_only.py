"""int8_linear_weight_only against oneDNN's prepacked float32 linear, F.linear and torch's weight-only op in bfloat16.

With --cold each step goes round copies of its weights that together exceed the caches.
"""

import torch
import torch.nn.functional as F

from _common import Bench, rotated
from torchaccel import ops

SHAPES = [(m, n, k) for n, k in ((4096, 4096), (3072, 768), (11008, 4096)) for m in (1, 4, 16, 64)]


def main() -> None:
    bench = Bench("int8_linear_weight_only", "oneDNN float32 prepacked", cold=True)
    for m, n, k in SHAPES:
        x, bias, scale = torch.randn(m, k), torch.randn(n), torch.rand(n) * 0.01
        halves = x.to(torch.bfloat16), bias.to(torch.bfloat16), scale.to(torch.bfloat16)

        def float32(w, x=x, bias=bias):
            return torch.ops.mkldnn._linear_pointwise(x, w, bias, "none", [], "")

        def bfloat16(w, x=halves[0], bias=halves[1]):
            return F.linear(x, w, bias)

        def torch_int8(w, x=halves[0], scale=halves[2]):
            return torch.ops.aten._weight_int8pack_mm(x, w, scale)

        def ours(w, x=x, bias=bias, scale=scale):
            return ops.int8_linear_weight_only(x, w[0], scale, bias, packed=w[1])

        weights = [torch.randint(-127, 128, (n, k), dtype=torch.int8) for _ in range(bench.copies(n * k))]
        reordered = torch.ops.mkldnn._reorder_linear_weight
        packed = [(b, ops.pack_weight_only(b)) for b in weights]
        steps = {
            "oneDNN": rotated(float32, [reordered(b.float(), m) for b in weights]),
            "bfloat16": rotated(bfloat16, [b.to(torch.bfloat16) for b in weights]),
            "torch int8, bfloat16": rotated(torch_int8, weights),
            "int8": rotated(ours, packed),
            "int8, bfloat16": rotated(lambda w, f=ours, x=halves[0]: f(w, x), packed),
        }
        bench.row(f"M={m} N={n} K={k}", n * k / 1e9, "GB/s of int8", steps)
    bench.finish()


if __name__ == "__main__":
    main()
