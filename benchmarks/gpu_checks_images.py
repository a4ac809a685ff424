"""Checks of what works on images, and of the fused norms, on a real device."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

import gpu_cases as cases
from gpu_items import Item
from torchaccel import ops
from torchaccel.ops import blocks
from torchaccel.ops.sparse_conv2d import pack_sparse
from torchaccel.ops.sparse_int8_conv2d import pack_sparse_int8
from torchaccel.testing import assert_exact_enough

NHWC = torch.channels_last
# N, C, H, W, O, kernel, stride, padding, dilation
GEOMETRIES = [
    (1, 3, 9, 7, 5, 3, 1, 1, 1),
    (2, 16, 8, 8, 64, 1, 1, 0, 1),
    (2, 64, 14, 14, 70, 3, 1, 1, 1),
    (1, 3, 33, 31, 64, 7, 2, 3, 1),
    (2, 20, 12, 10, 33, 3, 2, 1, 1),
    (1, 32, 13, 17, 64, 3, 1, 2, 2),
    (3, 64, 7, 7, 130, 1, 2, 0, 1),
    (1, 17, 5, 5, 3, 5, 1, 2, 1),
    (2, 256, 14, 14, 256, 3, 1, 1, 1),
]
SPARSE = [("1x4", 64, 64), ("2:4", 32, 64), ("2:4", 256, 128), ("tile", 128, 192), ("tile+2:4", 256, 128)]  # C, O
POOLS = [(2, 64, 14, 14, 3, 2, 1), (1, 3, 9, 7, 2, 2, 0), (2, 20, 7, 7, 3, 1, 1), (1, 128, 8, 8, 3, 2, 0)]


def items(device: torch.device, quick: bool) -> list[Item]:
    geometries, sparse, pools = (part[:2] if quick else part for part in (GEOMETRIES, SPARSE, POOLS))
    made = [Item(f"int8_conv2d: {_named(g)}", partial(_int8_conv, device, g), ("int8_conv2d",)) for g in geometries]
    made.append(Item("int8_conv2d: outputs, activations, residuals", partial(_conv_outputs, device), ("int8_conv2d",)))
    for pattern, c, o in sparse:
        name = f"{pattern}, C={c} O={o}"
        made += [
            Item(f"sparse_int8_conv2d: {name}", partial(_sparse_int8, device, pattern, c, o), ("sparse_int8_conv2d",)),
            Item(f"sparse_conv2d: {name}", partial(_sparse_float, device, pattern, c, o), ("sparse_conv2d",)),
        ]
    made += [Item(f"int8_max_pool2d: {p}", partial(_max_pool, device, p), ("int8_max_pool2d",)) for p in pools]
    made += [Item(f"int8_avg_pool2d: {p}", partial(_avg_pool, device, p), ("int8_avg_pool2d",)) for p in pools]
    made += [
        Item("int8_add", partial(_add, device), ("int8_add",)),
        Item("norm_quantize_int8: static", partial(_norms, device, True), ("norm_quantize_int8",)),
        Item("norm_quantize_int8: per row", partial(_norms, device, False), ("norm_quantize_int8_dynamic",)),
    ]
    return made


def _named(geometry: tuple[int, ...]) -> str:
    return " ".join(f"{n}={v}" for n, v in zip("N C H W O k stride padding dilation".split(), geometry, strict=True))


def _image(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    return cases.integers(shape, dtype, seed).contiguous(memory_format=NHWC)


def _conv_arguments(
    geometry: tuple[int, ...], dtype: torch.dtype, out: torch.dtype, activation: str, seed: int
) -> cases.Arguments:
    n, c, h, w, o, k, stride, padding, dilation = geometry
    return {
        "a": _image((n, c, h, w), dtype, seed),
        **cases.epilogue(o, c * k * k, n if seed % 2 else 1, dtype, seed, out, activation),
        "stride": (stride, stride), "padding": (padding, padding), "dilation": (dilation, dilation),
    }  # fmt: skip


def _weight(geometry: tuple[int, ...], seed: int) -> torch.Tensor:
    _, c, _, _, o, k, *_ = geometry
    return cases.integers((o, c, k, k), torch.int8, seed, weight=True)


def _int8_conv(device: torch.device, geometry: tuple[int, ...]) -> None:
    b, channels = _weight(geometry, 3), geometry[1]
    weights = {"dense": b} if channels % 4 else {"dense": b, "2:4": cases.pruned(b, "2:4", 4)}
    for seed, dtype in enumerate(cases.INT8):
        for out in (torch.float32, torch.uint8):
            for kind, weight in weights.items():
                arguments = _conv_arguments(geometry, dtype, out, "relu", seed) | {"b": weight}
                name = f"{kind}, {dtype} to {out}"
                cases.compare(name, ops.int8_conv2d, device, arguments)
                packed = ops.pack_int8(blocks.matrix_of(weight.to(device)), 1, channels)
                if packed is not None and device.type == "cuda":
                    got = ops.int8_conv2d(**cases.on(device, arguments), packed=packed)
                    cases.close(f"{name}, packed", got, ops.int8_conv2d(**arguments))


def _conv_outputs(device: torch.device) -> None:
    geometry = (2, 36, 6, 5, 40, 3, 1, 1, 1)
    b, shape = _weight(geometry, 3), (2, 40, 6, 5)
    residuals: list[cases.Arguments] = [
        {},
        {"residual": cases.floats(shape, torch.float32, 4).contiguous(memory_format=NHWC)},
    ]
    residuals += [
        {
            "residual": _image(shape, dtype, 5), "scale_residual": torch.tensor([0.07]),
            "zero_point_residual": torch.tensor([9], dtype=torch.int32),
        }
        for dtype in cases.INT8
    ]  # fmt: skip
    for out in (*cases.FLOATS, *cases.INT8):
        for activation in cases.ACTIVATIONS:
            for number, residual in enumerate(residuals):
                arguments = _conv_arguments(geometry, torch.uint8, out, activation, 7) | {"b": b} | residual
                cases.compare(f"{out} {activation} residual {number}", ops.int8_conv2d, device, arguments)


def _sparse_int8(device: torch.device, pattern: str, c: int, o: int) -> None:
    for seed, (k, stride) in enumerate(((1, 1), (3, 1), (3, 2))):
        geometry = (2, c, 9, 8, o, k, stride, k // 2, 1)
        b = cases.pruned(_weight(geometry, seed), pattern, seed)
        values, columns, offsets = blocks.to_blocks(b, pattern)
        for out in (torch.float32, torch.int8):
            arguments = _conv_arguments(geometry, torch.uint8, out, "relu", seed)
            arguments |= {"values": values, "columns": columns, "row_offsets": offsets, "kernel_size": (k, k)}
            cases.compare(f"{pattern} kernel {k} stride {stride}", ops.sparse_int8_conv2d, device, arguments)
            want = ops.sparse_int8_conv2d(**arguments)
            got = ops.sparse_int8_conv2d(
                **cases.on(device, arguments), **_tiles(pack_sparse_int8, device, arguments, c)
            )
            cases.close(f"{pattern} packed", got, want)


def _sparse_float(device: torch.device, pattern: str, c: int, o: int) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        x = cases.floats((2, c, 9, 8), dtype, 1).contiguous(memory_format=NHWC)
        weight = cases.pruned(cases.floats((o, c, 3, 3), dtype, 2), pattern, 3)
        bias, residual = (
            cases.floats((o,), dtype, 4),
            cases.floats((2, o, 9, 8), dtype, 5).contiguous(memory_format=NHWC),
        )
        values, columns, offsets = blocks.to_blocks(weight, pattern)
        arguments = {
            "x": x, "values": values, "columns": columns, "row_offsets": offsets, "kernel_size": (3, 3), "bias": bias,
            "residual": residual, "padding": (1, 1), "activation": "relu",
        }  # fmt: skip
        exact = torch.relu(F.conv2d(x.double(), weight.double(), bias.double(), padding=1) + residual.double())
        own = [t.to(device) for t in (x, weight, bias, residual)]
        pytorch = torch.relu(F.conv2d(*own[:3], padding=1) + own[3]).cpu()
        for packed in ({}, _tiles(pack_sparse, device, arguments, c)):
            got = ops.sparse_conv2d(**cases.on(device, arguments), **packed)
            assert_exact_enough(got.cpu(), exact, pytorch=pytorch)


def _tiles(pack, device: torch.device, arguments: cases.Arguments, c: int) -> cases.Arguments:
    """What the op takes once the weights are packed for `device`, where its kernel wants that."""
    parts = [arguments[name].to(device) for name in ("values", "columns", "row_offsets")]
    made = pack(*parts, c, arguments["kernel_size"])
    return {} if made is None else dict(zip(("packed", "tile_columns", "tile_offsets"), made, strict=True))


def _max_pool(device: torch.device, pool: tuple[int, ...]) -> None:
    n, c, h, w, k, stride, padding = pool
    for dtype in cases.INT8:
        a = _image((n, c, h, w), dtype, k)
        for ceil_mode in (False, True):
            arguments = {"a": a, "kernel_size": (k, k), "stride": (stride, stride), "padding": (padding, padding)}
            cases.compare(f"{dtype}", ops.int8_max_pool2d, device, arguments | {"ceil_mode": ceil_mode})


def _quantized(dtype: torch.dtype, suffix: str = "") -> cases.Arguments:
    return {"scale_a" + suffix: torch.tensor([0.03])} | {"zero_point": torch.tensor([4], dtype=torch.int32)}


def _avg_pool(device: torch.device, pool: tuple[int, ...]) -> None:
    n, c, h, w, k, stride, padding = pool
    whole = {"kernel_size": None, "stride": None, "padding": (0, 0)}
    window = {"kernel_size": (k, k), "stride": (stride, stride), "padding": (padding, padding)}
    for dtype in cases.INT8:
        for out in (torch.float32, torch.bfloat16, dtype):
            scale_out = {"scale_out": torch.tensor([0.02]), "zero_point_out": torch.tensor([1], dtype=torch.int32)}
            for where in (whole, window):
                arguments = {"a": _image((n, c, h, w), dtype, k), **_quantized(dtype), **where, "out_dtype": out}
                arguments |= scale_out if out == dtype else {}
                cases.compare(f"{dtype} to {out}", ops.int8_avg_pool2d, device, arguments)


def _add(device: torch.device) -> None:
    for shape in ((2, 64, 7, 7), (1, 3, 5, 9), (3, 17, 1, 1)):
        for dtype in cases.INT8:
            for activation in ("none", "relu"):
                arguments = {
                    "a": _image(shape, dtype, 1), "b": _image(shape, torch.uint8, 2),
                    "scale_a": torch.tensor([0.03]), "zero_point_a": torch.tensor([4], dtype=torch.int32),
                    "scale_b": torch.tensor([0.011]), "zero_point_b": None, "activation": activation,
                }  # fmt: skip
                cases.compare(f"{shape} {dtype}", ops.int8_add, device, arguments)
                out = {"out_dtype": dtype, "scale_out": torch.tensor([0.05]), "zero_point_out": None}
                cases.compare(f"{shape} {dtype} requantized", ops.int8_add, device, arguments | out)


def _norms(device: torch.device, static: bool) -> None:
    """Sums run in another order than the reference's: values within one step, scales within some roundings."""
    for dtype in cases.FLOATS:
        for k in (1, 7, 64, 1000, 4096, 10000):
            x, weight, bias = cases.floats((5, k), dtype, k), cases.floats((k,), dtype, 2), cases.floats((k,), dtype, 3)
            scale = torch.tensor([0.03]) if static else None
            for name, call in (
                ("layer", lambda *t: ops.layer_norm_quantize_int8(t[0], t[1], t[2], scale=t[3])),
                ("rms", lambda *t: ops.rms_norm_quantize_int8(t[0], t[1], scale=t[3])),
            ):
                given = (x, weight, bias, scale)
                want = call(*given)
                got = [t if t is None else t.cpu() for t in call(*(t if t is None else t.to(device) for t in given))]
                steps = int((got[0].int() - want[0].int()).abs().max())
                if steps > 1:
                    raise AssertionError(f"{name} norm, {dtype}, K={k}: {steps} steps apart")
                if not static:
                    torch.testing.assert_close(got[1], want[1], rtol=1e-5, atol=1e-7)
