"""int8_linear, float32 out, against oneDNN's float32 linear with packed weights (what a frozen torch.compile calls)."""

import torch

from _common import Bench
from torchaccel import ops

SHAPES = [(m, n, k) for n, k in ((768, 768), (3072, 768), (768, 3072), (4096, 4096)) for m in (1, 4, 16, 64, 128, 512)]


def main() -> None:
    bench = Bench("int8_linear", "oneDNN float32 prepacked")
    for m, n, k in SHAPES:
        x, weight, bias = torch.randn(m, k), torch.randn(n, k), torch.randn(n)
        reordered = torch.ops.mkldnn._reorder_linear_weight(weight, m)
        a, b = torch.randint(-127, 128, (m, k), dtype=torch.int8), torch.randint(-127, 128, (n, k), dtype=torch.int8)
        packed, colsum, scale_b = ops.pack_int8(b), b.sum(1, dtype=torch.int32), torch.rand(n) * 0.01
        scale = torch.tensor([0.02])

        def static(a=a, b=b, scale=scale, scale_b=scale_b, bias=bias, colsum=colsum, packed=packed):
            return ops.int8_linear(a, b, scale, scale_b, None, bias, colsum=colsum, packed=packed)

        def dynamic(x=x, b=b, scale_b=scale_b, bias=bias, colsum=colsum, packed=packed):
            q, scales, _ = ops.quantize_int8_dynamic(x)
            return ops.int8_linear(q, b, scales, scale_b, None, bias, colsum=colsum, packed=packed)

        steps = {
            "oneDNN": lambda x=x, w=reordered, bias=bias: torch.ops.mkldnn._linear_pointwise(
                x, w, bias, "none", [], ""
            ),
            "int8": static,
            "int8 with dynamic quantization": dynamic,
        }
        bench.row(f"M={m} N={n} K={k}", m * n * k / 1e9, "GMAC/s", steps)
    bench.finish()


if __name__ == "__main__":
    main()
