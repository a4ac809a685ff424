"""Checks of what surrounds the kernels: CUDA graphs, streams, a second device, models that replay."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

import gpu_cases as cases
from gpu_checks_quantize import same
from gpu_items import Item
from torchaccel import ops
from torchaccel.ops import blocks
from torchaccel.workflow.graphed import Graphed

Op = Callable[[Tensor], Tensor]


def _ops(device: torch.device) -> dict[str, Op]:
    """Each op as a function of a float16 matrix [M, 256]; what it needs besides is on `device`."""
    weight = cases.integers((130, 256), torch.int8, 1, weight=True)
    kernel = cases.integers((64, 64, 3, 3), torch.int8, 2, weight=True)
    scale_b = torch.rand(130, generator=torch.Generator().manual_seed(3)) * 0.01
    b, w, scale_b, one = (t.to(device) for t in (weight, kernel, scale_b, torch.tensor([0.02])))
    tiles, whole = ops.pack_int8(b), ops.pack_int8(b, two_four=False)
    image = ops.pack_int8(blocks.matrix_of(w), 1, 64)

    def linear(x: Tensor) -> Tensor:
        a, scale_a, zero_point = ops.quantize_int8_dynamic(x)
        return ops.int8_linear(a, b, scale_a, scale_b, zero_point, out_dtype=torch.float16, packed=tiles)

    def conv(x: Tensor) -> Tensor:
        a = ops.quantize_int8(x, one).view(-1, 2, 2, 64).permute(0, 3, 1, 2)
        return ops.int8_conv2d(
            a, w, one, scale_b[:64], padding=(1, 1), out_dtype=torch.int8, scale_out=one, packed=image
        )

    return {
        "quantize_int8_dynamic": lambda x: ops.quantize_int8_dynamic(x)[0],
        "quantize_int8": lambda x: ops.quantize_int8(x, one),
        "int8_linear": linear,
        "int8_conv2d": conv,
        "int8_linear_weight_only": lambda x: ops.int8_linear_weight_only(x, b, scale_b, packed=whole),
    }


def items(device: torch.device, quick: bool) -> list[Item]:
    made = [Item("a model behind CUDA graphs keeps its results", partial(_model, device))]
    if device.type != "cuda":
        return made
    for op in _ops(torch.device("cpu")):
        made.append(Item(f"{op}: graph capture and 100 replays", partial(_graph, device, op), (op,)))
        made.append(Item(f"{op}: two streams", partial(_streams, device, op), (op,)))
    made.append(Item("a model that cannot be captured runs all the same", partial(_uncapturable, device)))
    if torch.cuda.device_count() > 1:
        second = torch.device("cuda", 1)
        made += [
            Item(f"{op}: the second device while the first is current", partial(_call, second, op), (op,))
            for op in _ops(torch.device("cpu"))
        ]
    return made


def _input(seed: int, rows: int = 64) -> Tensor:
    return cases.floats((rows, 256), torch.float16, seed)


def _call(device: torch.device, name: str) -> None:
    same(name, _ops(device)[name](_input(1).to(device)), _eager(name, device)(_input(1)))


def _eager(name: str, device: torch.device) -> Op:
    """The op outside of graphs, one call after the other, on the CPU's copy of the input."""
    op = _ops(device)[name]
    return lambda x: op(x.to(device)).cpu()


def _graph(device: torch.device, name: str) -> None:
    op, eager = _ops(device)[name], _eager(name, device)
    x = _input(0).to(device)
    for rows in (64, 3):  # few rows take another kernel, and a workspace
        given = x[:rows].clone()
        op(given)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = op(given)
        for seed in range(100):
            given.copy_(_input(seed, rows))
            graph.replay()
            same(f"replay {seed} of {rows} rows", y, eager(_input(seed, rows)))


def _streams(device: torch.device, name: str) -> None:
    op = _ops(device)[name]
    streams = [torch.cuda.Stream(device), torch.cuda.Stream(device)]
    wholes = [_input(seed, 4096) for seed in range(2)]
    inputs = [x.to(device) for x in wholes]
    torch.cuda.synchronize()
    results: list[list[Tensor]] = [[], []]
    for _ in range(50):
        for stream, x, made in zip(streams, inputs, results, strict=True):
            with torch.cuda.stream(stream):
                made.append(op(x * 1.0))  # its input is made on the same stream
    torch.cuda.synchronize()
    for x, made in zip(wholes, results, strict=True):
        want = _eager(name, device)(x)
        for y in made:
            same("stream", y, want)


class _Reads(nn.Module):
    """Reads a value on the host, which no capture allows."""

    def forward(self, x: Tensor) -> Tensor:
        return x * float(x.sum() > -1e9)


def _uncapturable(device: torch.device) -> None:
    fast = Graphed(_Reads().eval())
    x = torch.randn(8, device=device)
    for _ in range(3):
        same("uncaptured", fast(x), x.cpu())
    if not fast.refused:
        raise AssertionError("a host read was captured")
    _model(device)  # and the device is fit for the next capture


def _model(device: torch.device) -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5)).eval().to(device)
    inputs = [torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed)).to(device) for seed in range(5)]
    with torch.no_grad():
        expected = [model(x) for x in inputs]
        fast = Graphed(model)
        results = [fast(x) for x in inputs]
    for y, want in zip(results, expected, strict=True):
        torch.testing.assert_close(y, want, rtol=1e-3, atol=1e-3)
    graphs = len(fast._cache.graphs)
    if graphs != (device.type == "cuda"):
        raise AssertionError(f"{graphs} graphs were captured: {fast.refused}")
