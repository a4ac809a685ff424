"""products.h's Case, filled in from tensors, and the reference that a product must match."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import c_bool, c_double, c_int, c_int64, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from harness import Buffer, Kernels, Machine, apart, output, workspace
from torchaccel.ops import _tiles
from torchaccel.ops.int8_conv2d import reference

TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int8: 3, torch.uint8: 4}
ACTIVATIONS = ("none", "relu", "relu6", "gelu", "silu")


class Weights(ctypes.Structure):
    _fields_ = [
        ("tiles", c_void_p), ("bands", c_int), ("k_tiles", c_int), ("kept", c_int), ("columns", c_void_p),
        ("offsets", c_void_p),
    ]  # fmt: skip


class Epilogue(ctypes.Structure):
    _fields_ = [
        ("colsum", c_void_p), ("zero_point", c_void_p), ("scale_a", c_void_p), ("scale_b", c_void_p),
        ("zero_rows", c_int), ("scale_rows", c_int), ("bias", c_void_p), ("bias_type", c_int), ("residual", c_void_p),
        ("residual_type", c_int), ("scale_residual", c_void_p), ("zero_point_residual", c_void_p),
        ("activation", c_int), ("out", c_void_p), ("out_type", c_int), ("scale_out", c_void_p),
        ("zero_point_out", c_void_p), ("rows", c_int), ("channels", c_int), ("wide", c_bool),
    ]  # fmt: skip


class Planned(ctypes.Structure):
    _fields_ = [
        ("cycles", c_double), ("blocks", c_int), ("whole", c_int), ("channels", c_int), ("rows", c_int),
        ("blocks_at_once", c_int), ("shared_bytes", c_int), ("stage_bytes", c_int), ("stage_macs", c_double),
        ("warpgroups", c_bool),
    ]  # fmt: skip


class Case(ctypes.Structure):
    _fields_ = [
        ("tiling", c_int), ("blocks", c_int), ("whole", c_int),
        ("is_signed", c_int), ("two_four", c_int), ("half", c_int),
        ("multiprocessors", c_int), ("weights", Weights), ("epilogue", Epilogue), ("partial", c_void_p),
        ("x", c_void_p), ("pitch", c_int64), ("rows", c_int), ("k", c_int),
        ("images", c_int), ("height", c_int), ("width", c_int), ("channels", c_int),
        ("kernel", c_int * 2), ("stride", c_int * 2), ("padding", c_int * 2), ("dilation", c_int * 2),
        ("out", c_int * 2), ("planned", ctypes.POINTER(Planned)),
    ]  # fmt: skip


@dataclass
class Problem:
    """A convolution over NHWC, or with `matrix` a product of [rows, K] by [O, K], and all that its epilogue takes."""

    x: Tensor  # [N, H, W, C]
    weight: Tensor  # [O, kh, kw, C]
    matrix: bool = False
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    scale_a: Tensor | None = None
    scale_b: Tensor | None = None
    zero_point: Tensor | None = None
    bias: Tensor | None = None
    residual: Tensor | None = None
    scale_residual: Tensor | None = None
    zero_point_residual: Tensor | None = None
    activation: str = "none"
    out_dtype: torch.dtype = torch.float32
    scale_out: Tensor | None = None
    zero_point_out: Tensor | None = None
    two_four: bool = False
    skip: bool = False
    tiling: int = -1
    blocks: int = 5
    whole: int = 99  # tiles that one block makes; the rest is shared
    multiprocessors: int = 3
    tile: int = 256 * 192  # sums of the largest tiling

    @property
    def out_size(self) -> tuple[int, int]:
        height, width = (
            (self.x.shape[1 + i] + 2 * self.padding[i] - self.dilation[i] * (self.weight.shape[1 + i] - 1) - 1)
            // self.stride[i] + 1
            for i in (0, 1)
        )  # fmt: skip
        return height, width

    @property
    def rows(self) -> int:
        return self.x.shape[0] * self.out_size[0] * self.out_size[1]

    def want(self) -> Tensor:
        """[rows, O] by the op's reference."""
        weight = self.weight.permute(0, 3, 1, 2)
        one = torch.ones(1)
        y = reference(
            self.x.permute(0, 3, 1, 2), weight, weight.sum((1, 2, 3), dtype=torch.int32),
            one if self.scale_a is None else self.scale_a,
            torch.ones(weight.shape[0]) if self.scale_b is None else self.scale_b, self.zero_point, self.bias,
            None if self.residual is None else self.residual.permute(0, 3, 1, 2),
            self.scale_residual, self.zero_point_residual, self.stride, self.padding, self.dilation, 1,
            self.activation, self.out_dtype, self.scale_out, self.zero_point_out, None,
        )  # fmt: skip
        return y.permute(0, 2, 3, 1).reshape(self.rows, -1)


def tilings(kernels: Kernels, problem: Problem) -> int:
    """How many tilings the problem's kernels come in."""
    case, _ = fill(problem, torch.empty(problem.rows, problem.weight.shape[0], dtype=problem.out_dtype))
    case.tiling = 1 << 20
    return kernels.library.product(ctypes.byref(case))


def run(kernels: Kernels, problem: Problem, machine: Machine) -> Tensor:
    """[rows, O], as the kernels compute it."""
    out = torch.empty(problem.rows, problem.weight.shape[0], dtype=problem.out_dtype)
    case, buffers = fill(problem, out)
    kernels.run("product", ctypes.pointer(case), machine=machine, buffers=buffers)
    return out


def fill(p: Problem, out: Tensor, keep: Callable[[Tensor], Tensor] = apart) -> tuple[Case, dict[str, Tensor | Buffer]]:
    """The Case of a problem, and what its kernels may touch, as `keep` keeps it."""
    channels, element = p.weight.shape[0], p.x.element_size()
    packed = _tiles.pack(p.weight.flatten(1), two_four=p.two_four, skip=p.skip)
    case = Case(tiling=p.tiling, blocks=p.blocks, whole=p.whole, multiprocessors=p.multiprocessors)
    case.is_signed = p.x.dtype == torch.int8
    case.two_four = p.two_four
    case.half = TYPES[p.x.dtype] if p.x.dtype in (torch.float16, torch.bfloat16) else 0
    buffers: dict[str, Tensor | Buffer] = {"out": output(out)}

    def place(name: str, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        buffers[name] = keep(tensor if name == "x" else tensor.contiguous())
        return buffers[name].data_ptr()

    w = case.weights
    w.tiles = place("tiles", packed.tiles)
    w.columns, w.offsets = place("columns", packed.columns), place("offsets", packed.offsets)
    bytes_k = p.weight[0].numel() * (element if packed.tiles.shape[-1] != 4096 or p.weight.dtype != torch.int8 else 1)
    w.bands, w.k_tiles = -(-channels // 64), -(-bytes_k // (128 if p.two_four else 64))
    w.kept = packed.tiles.numel() // packed.tiles.shape[-1]
    e = case.epilogue
    pixels = p.out_size[0] * p.out_size[1]
    if p.zero_point is not None:
        e.colsum = place("colsum", p.weight.flatten(1).sum(1, dtype=torch.int32))
        e.zero_rows = 0 if p.zero_point.numel() == 1 else pixels
    if p.scale_a is not None:
        e.scale_rows = 0 if p.scale_a.numel() == 1 else pixels
    for name in ("zero_point", "scale_a", "scale_b", "bias", "residual", "scale_residual", "zero_point_residual",
                 "scale_out", "zero_point_out"):  # fmt: skip
        setattr(e, name, place(name, getattr(p, name)))
    e.bias_type = 0 if p.bias is None else TYPES[p.bias.dtype]
    e.residual_type = 0 if p.residual is None else TYPES[p.residual.dtype]
    e.activation = ACTIVATIONS.index(p.activation)
    e.out, e.out_type = out.data_ptr(), TYPES[p.out_dtype]
    e.rows, e.channels, e.wide = p.rows, channels, channels % 8 == 0
    blocks = p.blocks if p.tiling >= 0 else 4 * p.multiprocessors
    partial = torch.empty(2 * blocks * p.tile, dtype=torch.int32, device=out.device)
    buffers["partial"] = workspace(partial)
    case.partial = partial.data_ptr()
    case.x = place("x", p.x)
    case.rows, case.k = p.rows, p.weight[0].numel() * element
    case.pitch = case.k if p.matrix else 0
    case.images, case.height, case.width = p.x.shape[:3]
    case.channels = p.x.shape[3] * element
    for name, pair in (("kernel", p.weight.shape[1:3]), ("stride", p.stride), ("padding", p.padding),
                       ("dilation", p.dilation), ("out", p.out_size)):  # fmt: skip
        getattr(case, name)[:] = pair
    return case, buffers
