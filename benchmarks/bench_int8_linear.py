"""int8_linear, float32 out, against oneDNN's float32 linear with packed weights (what a frozen torch.compile calls).

Beside it layers that quantize their input at each call: torch's by each of its engines, torchao's, compiled, where it
is installed, and Int8Linear. With --cold each step but torchao's goes round copies of its weights that together exceed
the caches.
"""

import copy
import importlib.util
import warnings
from functools import partial

import torch
from torch import nn

from _common import Bench, rotated
from torchaccel import ops
from torchaccel.nn import Int8Linear

SHAPES = [(m, n, k) for n, k in ((768, 768), (3072, 768), (768, 3072), (4096, 4096)) for m in (1, 4, 16, 64, 128, 512)]


ENGINES = [name for name in ("x86", "onednn", "fbgemm") if name in torch.backends.quantized.supported_engines]


def torch_dynamic(linear: nn.Linear, engine: str) -> nn.Module:
    """torch's dynamically quantized layer, packed for one of its engines."""
    torch.backends.quantized.engine = engine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it will move to torchao
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(copy.deepcopy(linear)), {nn.Linear})[0]


def torchao_dynamic(linear: nn.Linear) -> nn.Module:
    """torchao's dynamically quantized layer, compiled and frozen."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = nn.Sequential(copy.deepcopy(linear)).eval()
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return torch.compile(model, options={"freezing": True})


def main() -> None:
    bench = Bench("int8_linear", "oneDNN float32 prepacked", cold=True)
    for m, n, k in SHAPES:
        x, copies = torch.randn(m, k), bench.copies(n * k)
        linears = [nn.Linear(k, n) for _ in range(copies)]
        reordered = [torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), m) for linear in linears]
        layers = [Int8Linear.from_float(linear) for linear in linears]
        a, scale = torch.randint(-127, 128, (m, k), dtype=torch.int8), torch.tensor([0.02])

        def onednn(w, x=x, bias=linears[0].bias):
            return torch.ops.mkldnn._linear_pointwise(x, w, bias, "none", [], "")

        def static(layer, a=a, scale=scale):
            return ops.int8_linear(
                a, layer.weight, scale, layer.scale, None, layer.bias, colsum=layer.colsum, packed=layer.packed
            )

        def call(layer, x=x):
            return layer(x)

        steps = {
            "oneDNN": rotated(onednn, reordered),
            "int8": rotated(static, layers),
            **{name: rotated(call, [torch_dynamic(linear, name) for linear in linears]) for name in ENGINES},
            "Int8Linear, dynamic": rotated(call, layers),
        }
        if copies == 1 and importlib.util.find_spec("torchao"):
            steps["torchao, compiled"] = partial(torchao_dynamic(linears[0]), x)
        bench.row(f"M={m} N={n} K={k}", m * n * k / 1e9, "GMAC/s", steps)
    bench.finish()


if __name__ == "__main__":
    main()
