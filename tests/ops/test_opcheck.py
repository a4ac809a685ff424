"""PyTorch's own checks of each op: schema, fake against real (strides too), and what the dispatcher holds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx

from tests.nn import float_bodies
from tests.nn.chain_bodies import Layer, Recipe, images, make
from torchaccel import _native, ops
from torchaccel.nn import _chain_plan
from torchaccel.ops import blocks
from torchaccel.ops._chain_step import SCRATCH

OPS = torch.ops.torchaccel
NO_TILES = (None, None, None)
SIZES = [(2, 8, 9, 7), (1, 4, 1, 1), (3, 4, 5, 1), (0, 8, 9, 7)]


def _rand(*shape: int) -> Tensor:
    return torch.rand(shape) + 0.1


def _int(*shape: int, dtype: torch.dtype = torch.int8) -> Tensor:
    return torch.randint(0, 100, shape).to(dtype)


def _weight(o: int, c: int) -> Tensor:
    torch.manual_seed(0)
    keep = torch.rand(o, c // 4, 1, 3, 3) > 0.5
    return (torch.randint(1, 100, (o, c // 4, 4, 3, 3)) * keep).view(o, c, 3, 3).to(torch.int8)


def _conv_tail(o: int, out: torch.dtype) -> tuple:
    int8 = out != torch.float32
    return (
        [1, 2], [1, 1], [1, 1], *((1,) if o else ()), "relu", out,
        torch.ones(1) if int8 else None, torch.zeros(1, dtype=torch.int32) if int8 else None,
    )  # fmt: skip


def _chain(body: fx.GraphModule, recipe: Recipe, n: int) -> tuple:
    plan = _chain_plan.build(body, recipe.size, recipe.dtype, 2, {})
    arena = torch.zeros(plan.arena_bytes + SCRATCH + 128, dtype=torch.uint8)
    tensors = plan.steps, plan.values, plan.indices, plan.floats, arena
    numbers = plan.arena_bytes, plan.late_steps, plan.lanes
    return images(recipe, n), *tensors, *numbers, list(plan.out_size), plan.out_dtype


def _int8_chain(size: tuple[int, int, int], n: int, dtype: torch.dtype, average: torch.dtype | None) -> tuple:
    layers = Layer(channels=8, kernel=(3, 3), padding=(1, 1)), Layer(channels=6, pattern="1x4", dtype=torch.int8)
    recipe = Recipe(layers, size, dtype, average=average)
    return _chain(make(recipe), recipe, n)


def _float_chain(size: tuple[int, int, int], n: int, average: torch.dtype | None) -> tuple:
    first = Layer(channels=8, kernel=(3, 3), padding=(1, 1), pattern="unstructured")
    recipe = Recipe((first, Layer(channels=6, pattern="1x4")), size, average=average)
    return _chain(float_bodies.make(recipe), recipe, n)


def _cases() -> list[tuple[str, tuple]]:
    cases: list[tuple[str, tuple]] = []
    for shape in [(4, 9), (2, 3, 5), (0, 8), (7,)]:
        for dtype in (torch.int8, torch.uint8):
            cases.append(("quantize_int8_dynamic", (torch.randn(shape), dtype)))
            cases.append(("quantize_int8", (torch.randn(shape), _rand(1), None, dtype)))
            norm = torch.randn(shape), _rand(shape[-1]), _rand(shape[-1]), 1e-5, True
            cases.append(("norm_quantize_int8", (*norm, _rand(1), None, dtype)))
            cases.append(("norm_quantize_int8_dynamic", (*norm, dtype)))
    x = torch.randn(2, 8, 4, 3)
    for strided in (x, x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3)):
        cases.append(("quantize_int8", (strided, _rand(1), torch.ones(1, dtype=torch.int32), torch.uint8)))
        a = strided.to(torch.int8)
        cases.append(("int8_add", (a, a, _rand(1), None, _rand(1), None, "gelu", torch.float32, None, None)))
    for m in (0, 1, 5):
        for out in (torch.float32, torch.int8):
            b, int8 = _int(6, 10), out != torch.float32
            arguments = (
                _int(2, m, 10), b, b.sum(1, dtype=torch.int32), _rand(1), _rand(6), None, _rand(6), "gelu", out,
                torch.ones(1) if int8 else None, None, ops.pack_int8(b),
            )  # fmt: skip
            cases.append(("int8_linear", arguments))
            x, tail = torch.randn(2, m, 10), arguments[8:]
            cases.append(
                ("int8_linear_dynamic", (x, *arguments[1:3], *arguments[4:5], None, "relu", torch.uint8, *tail))
            )
        b = _int(6, 10)
        arguments = (torch.randn(2, m, 10), b, _rand(6), None, "none", ops.pack_weight_only(b))
        cases.append(("int8_linear_weight_only", arguments))
    for shape in SIZES:
        a = _int(*shape, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
        window = [min(2, s) for s in shape[2:]]
        cases.append(("int8_max_pool2d", (a, window, [1, 2], [0, 0], [1, 1], True)))
        for out in (torch.float32, torch.uint8):
            tail = (out, None, None) if out == torch.float32 else (out, torch.ones(1), None)
            cases.append(("int8_avg_pool2d", (a, _rand(1), None, window, [1, 2], [0, 0], False, True, *tail)))
            cases.append(("int8_add", (a, a, _rand(1), None, _rand(1), None, "relu", *tail)))
    for shape in SIZES:
        n, c, h, w = shape
        a = _int(*shape, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
        weight = _weight(8, c)
        size = (n, 8, h, (w - 1) // 2 + 1)
        for out in (torch.float32, torch.uint8):
            residual = torch.randn(size).contiguous(memory_format=torch.channels_last)
            colsum = weight.sum((1, 2, 3), dtype=torch.int32)
            head = colsum, _rand(1), _rand(8), None, _rand(8), residual, None, None
            cases.append(("int8_conv2d", (a, weight, *head, *_conv_tail(8, out), None)))
            for pattern in ("1x4", "4x4"):
                compressed = blocks.to_blocks(weight, pattern)
                cases.append(("sparse_int8_conv2d", (a, *compressed, *head, [3, 3], *_conv_tail(0, out), *NO_TILES)))
        values, columns, offsets = blocks.to_blocks(weight.float(), "1x4")
        geometry = [3, 3], [1, 2], [1, 1], [1, 1]
        for form in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(shape).contiguous(memory_format=form)
            cases.append(("sparse_conv2d", (x, values, columns, offsets, _rand(8), None, *geometry, "relu", *NO_TILES)))
        for average in (None, torch.float32, torch.uint8):
            cases.append(("conv_chain", _int8_chain((c, h, w), n, torch.uint8, average)))
            cases.append(("conv_chain", _int8_chain((3, h, w), n, torch.float32, average)))
        for average in (None, torch.float32):
            cases.append(("conv_chain", _float_chain((3, h, w), n, average)))
    return cases


@pytest.mark.parametrize(("name", "arguments"), _cases(), ids=lambda value: value if isinstance(value, str) else "")
def test_opcheck(name: str, arguments: tuple) -> None:
    op = getattr(OPS, name)
    torch.library.opcheck(op, arguments)
    # opcheck does not compare the strides of all outputs, so these are compared here, over sizes of 1 and 0 as well.
    real = op(*arguments)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = op(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments))
    for one, other in zip(*((r,) if isinstance(r, Tensor) else r for r in (real, fake)), strict=True):
        assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)
    if ("conv" in name or "pool" in name) and name != "sparse_conv2d":
        floats = name == "conv_chain" and arguments[2].dtype == torch.float32
        form = torch.contiguous_format if floats else torch.channels_last
        assert real.stride() == torch.empty(real.shape, memory_format=form).stride()


def test_every_op_is_covered() -> None:
    assert {name for name, _ in _cases()} == set(ops.names()) - {"pack_int8", "pack_sparse_f32"}


NATIVE = (
    "quantize_int8", "quantize_int8_dynamic", "pack_int8", "int8_linear", "int8_linear_dynamic",
    "int8_linear_weight_only", "int8_conv2d", "sparse_int8_conv2d", "int8_max_pool2d", "int8_avg_pool2d", "int8_add",
    "conv_chain", "sparse_conv2d", "pack_sparse_f32",
)  # fmt: skip


@pytest.mark.parametrize("name", ops.names())
def test_the_dispatcher_holds_reference_and_kernel(name: str) -> None:
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    assert has(f"torchaccel::{name}", "CompositeExplicitAutograd")
    expected = name in NATIVE and _native.status()["cpu"]["loaded"]
    assert has(f"torchaccel::{name}", "CPU") == expected == ops.has_kernel(name, "cpu")


def test_the_kernels_are_built_where_these_tests_run() -> None:
    # Without this, tests of kernels would pass on references alone.
    assert _native.status()["cpu"]["loaded"], _native.status()["cpu"]["reason"]
