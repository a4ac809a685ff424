"""What the CUDA kernels compete with: PyTorch's int8, half and 2:4 products and its convolutions, also compiled.

Each function returns `Made`: the calls on rotating inputs, and the operations and bytes of one call.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu_timing import Call, rotation

Made = tuple[list[Call], float, float]


def linear(device: torch.device, m: int, n: int, k: int, dtype: torch.dtype) -> Made:
    size = (m * k + n * k + m * n) * dtype.itemsize
    sets = [(random((m, k), dtype, device), random((n, k), dtype, device)) for _ in range(rotation(size, device))]
    return [lambda a=a, b=b: F.linear(a, b) for a, b in sets], 2.0 * m * n * k, size


def int_mm(device: torch.device, m: int, n: int, k: int, finish: str) -> Made:
    """int8 product; "eager" and "compiled" multiply by the scales and add a bias, to bfloat16."""
    size = m * k + n * k + m * n * (4 if finish == "int32" else 2)
    scale_a, scale_b = torch.rand(m, 1, device=device), torch.rand(n, device=device)
    bias = torch.rand(n, device=device)

    def fused(a: Tensor, b: Tensor) -> Tensor:
        return (torch._int_mm(a, b.t()).float() * (scale_a * scale_b) + bias).bfloat16()

    def plain(a: Tensor, b: Tensor) -> Tensor:
        return torch._int_mm(a, b.t())

    forms = {"int32": plain, "eager": fused}
    call = _compile(fused) if finish == "compiled" else forms[finish]
    sets = [(integers((m, k), device), integers((n, k), device)) for _ in range(rotation(size, device))]
    return [lambda a=a, b=b: call(a, b) for a, b in sets], 2.0 * m * n * k, size


def sparse_linear(device: torch.device, m: int, n: int, k: int) -> Made:
    """fp16 with a 2:4 weight; operations are counted as of the dense product."""
    from torch.sparse import SparseSemiStructuredTensor, to_sparse_semi_structured

    SparseSemiStructuredTensor._FORCE_CUTLASS = False
    size = (m * k + m * n) * 2 + n * k * 9 // 8
    keep = torch.tensor([1, 1, 0, 0], device=device, dtype=torch.float16).repeat(k // 4)
    sets = [
        (
            random((m, k), torch.float16, device),
            to_sparse_semi_structured(random((n, k), torch.float16, device) * keep),
        )
        for _ in range(rotation(size, device))
    ]
    return [lambda a=a, b=b: F.linear(a, b) for a, b in sets], 2.0 * m * n * k, size


def sparse_int8(device: torch.device, m: int, n: int, k: int) -> Made:
    size = m * k + m * n * 2 + n * k * 5 // 8
    keep = torch.tensor([1, 1, 0, 0], device=device, dtype=torch.int8).repeat(k // 4)
    sets = [
        (torch._cslt_compress(integers((n, k), device) * keep), integers((m, k), device))
        for _ in range(rotation(size, device))
    ]
    return (
        [lambda a=a, b=b: torch._cslt_sparse_mm(b, a.t(), out_dtype=torch.bfloat16) for b, a in sets],
        2.0 * m * n * k,
        size,
    )


def conv(
    device: torch.device, batch: int, channels: int, size: int, kernel: int, dtype: torch.dtype, form: str
) -> Made:
    """The convolution of a residual block: bias, residual and ReLU follow it; `form` is "eager" or "compiled"."""
    torch.backends.cudnn.benchmark = True
    shape = (batch, channels, size, size)
    moved = 3 * batch * channels * size * size * dtype.itemsize + channels * channels * kernel * kernel * dtype.itemsize
    bias = random((channels,), dtype, device)
    weight = nhwc(random((channels, channels, kernel, kernel), dtype, device))

    def block(x: Tensor, residual: Tensor) -> Tensor:
        return torch.relu(F.conv2d(x, weight, bias, padding=kernel // 2) + residual)

    call = _compile(block) if form == "compiled" else block
    sets = [
        (nhwc(random(shape, dtype, device)), nhwc(random(shape, dtype, device))) for _ in range(rotation(moved, device))
    ]
    operations = 2.0 * batch * channels * channels * size * size * kernel * kernel
    return [lambda x=x, r=r: call(x, r) for x, r in sets], operations, moved


def copy(device: torch.device, size: int) -> Made:
    """A copy on the device that reads and writes `size` bytes together."""
    sources = [
        torch.randint(255, (size // 2,), dtype=torch.uint8, device=device) for _ in range(rotation(size, device))
    ]
    targets = [torch.empty_like(source) for source in sources]
    return [lambda s=s, t=t: t.copy_(s) for s, t in zip(sources, targets, strict=True)], 0.0, size


def _compile(function: Callable) -> Callable:
    """Tuned by torch.compile; without a GPU only traced."""
    torch._dynamo.reset()
    if not torch.cuda.is_available():
        return torch.compile(function, backend="eager", dynamic=False)
    return torch.compile(function, mode="max-autotune-no-cudagraphs", dynamic=False)


def nhwc(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last)


def random(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(shape, dtype=dtype, device=device)


def integers(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.randint(-127, 128, shape, dtype=torch.int8, device=device)
