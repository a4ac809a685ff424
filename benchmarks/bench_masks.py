"""sparse_int8_conv2d on the masks of a network that was trained and pruned, against random masks of the same density.

Training concentrates what is left in some rows and columns, so threads get unequal shares and neighbouring blocks other
distances than random ones. The masks are those of a ResNet checkpoint of `torchaccel demo`, by default of a fresh
`--quick` one, a minute and a half; the layers are timed at the sizes that they have on 224x224 images.
"""

from __future__ import annotations

import math
import re
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))  # also where this runs as a module
from _common import Bench, Step, conv_name
from torchaccel import load, ops
from torchaccel.compress import sparsity_of
from torchaccel.demo import resnet18, resnet50
from torchaccel.demo.run import demo
from torchaccel.ops import blocks
from torchaccel.ops.sparse_int8_conv2d import colsum_of

PATTERN = "1x4"  # the demo's
BATCH = 16
LEAST = 0.5  # sparsity of a layer that counts as pruned


def pruned_layers(model: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    """The pruned convolutions of an optimized ResNet, in float, whatever form was chosen for them."""
    for name, module in model.named_modules():
        if hasattr(module, "kernel_size") and hasattr(module, "to_float"):
            conv = module.to_float()
            if isinstance(conv, nn.Conv2d) and sparsity_of(conv.weight) > LEAST:
                yield name, conv


def shuffled(kept: Tensor) -> Tensor:
    """As many kept blocks, anywhere."""
    return kept.flatten()[torch.randperm(kept.numel())].view(kept.shape)


def step(kept: Tensor, conv: nn.Conv2d, a: Tensor) -> Step:
    """The convolution with random weights in the blocks [O, kernel * C / 4] that are kept."""
    o, c, kh, kw = conv.weight.shape
    values = torch.randint(1, 128, (o, kh, kw, c), dtype=torch.int8)
    b = (values.view(o, -1, 4) * kept[:, :, None]).view(values.shape).permute(0, 3, 1, 2)
    form = blocks.to_blocks(b, PATTERN)
    return partial(
        ops.sparse_int8_conv2d, a, *form, (kh, kw), scale_a=torch.tensor([0.02]), scale_b=torch.full((o,), 0.01),
        bias=torch.randn(o), stride=conv.stride, padding=conv.padding, activation="relu", out_dtype=torch.uint8,
        scale_out=torch.tensor([0.5]), colsum=colsum_of(form[0], form[2]),
    )  # fmt: skip


def main() -> None:
    bench = Bench("sparse_int8_conv2d on trained masks", "random masks", checkpoint="of `torchaccel demo`, a ResNet")
    path = bench.options.checkpoint
    with tempfile.TemporaryDirectory() as folder:
        if path is None:
            demo(quick=True, out=folder)
            path = Path(folder) / "model.safetensors"
        try:
            model = load(path, resnet18)
        except ValueError:
            model = load(path, resnet50)
    for name, conv in pruned_layers(model):
        kept = blocks.matrix_of(conv.weight).unflatten(1, (-1, 4)).ne(0).any(2)
        rows = kept.sum(1).float()
        o, c, kernel, stride = conv.out_channels, conv.in_channels, conv.kernel_size[0], conv.stride[0]
        stage = int(re.search(r"layer(\d)", name).group(1))  # type: ignore[union-attr]
        size = (112 >> stage) * stride
        a = torch.randint(0, 256, (BATCH, c, size, size), dtype=torch.uint8).contiguous(
            memory_format=torch.channels_last
        )
        products = BATCH * (size // stride) ** 2 * kept.sum().item() * 4 / 1e9
        fullest = rows.max() / rows.mean()
        print(f"{name}: {1 - kept.float().mean():.1%} pruned, the fullest row {fullest:.1f} times the mean")
        steps = {"random": step(shuffled(kept), conv, a), "trained": step(kept, conv, a)}
        bench.row(conv_name(BATCH, size, c, o, kernel, stride), products, "GMAC/s", steps)
    ratios = [row["ratio"] for row in bench.rows if row["step"] == "trained"]
    print(f"trained against random masks, geometric mean of {len(ratios)} layers: {_mean(ratios):.2f}x")
    bench.finish()


def _mean(ratios: list[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


if __name__ == "__main__":
    main()
