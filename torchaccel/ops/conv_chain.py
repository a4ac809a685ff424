"""conv_chain: a run of int8 layers in one call, by a plan over one arena; see csrc/cpu/chain.h for the layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from enum import IntEnum

import torch
from torch import Tensor

from torchaccel.ops import _check, _conv
from torchaccel.ops._library import define, run

OP = "conv_chain"
LANES = 16
"""Places of a vector, 4 bytes each."""
SLAB = 128
"""Output channels that are one task of a float32 convolution."""
TILE = 8
"""Vectors of a row that it computes together, at most."""
SCRATCH = SLAB * TILE * 4 * LANES
"""Bytes for the sums of such a task."""


class Kind(IntEnum):
    """What a step does."""

    LOAD = 0
    RELANE = 1
    HALO = 2
    CONV = 3
    MAX_POOL = 4
    AVERAGE = 5
    STORE = 6


@dataclass
class Step:
    """One step of a plan; the fields and their order are those of `ChainStep` in csrc/cpu/chain.h."""

    kind: int
    x: int = 0
    x_plane: int = 0
    x_pitch: int = 0
    y: int = 0
    y_plane: int = 0
    y_pitch: int = 0
    residual: int = -1
    residual_plane: int = 0
    residual_pitch: int = 0
    planes: int = 0
    h: int = 0
    w: int = 0
    channels: int = 0
    rows: int = 0
    columns: int = 0
    x_down: int = 0
    x_across: int = 0
    x_images: int = 1
    x_grid_h: int = 1
    x_grid_w: int = 1
    x_block_h: int = 1
    x_block_w: int = 1
    y_images: int = 1
    y_grid_h: int = 1
    y_grid_w: int = 1
    y_block_h: int = 1
    y_block_w: int = 1
    tile: int = 1
    block_rows: int = 0
    blocks: int = 0
    chunks: int = 0
    values: int = 0
    offsets: int = 0
    row_offsets: int = 0
    starts: int = 0
    lanes: int = 0
    floats: int = 0
    zero_point: int = 0
    residual_zero_point: int = 0
    flip: int = 0
    padding: int = 0

    def ints(self) -> tuple[int, ...]:
        return astuple(self)


STEP_INTS = len(fields(Step))


class _Machine:
    """Runs a plan over the arena of one image, as the kernels do, in PyTorch."""

    def __init__(self, values: Tensor, indices: Tensor, floats: Tensor, arena_bytes: int, x: Tensor, out: Tensor):
        self.values, self.indices, self.floats = values, indices.long(), floats
        self.arena = torch.zeros(arena_bytes, dtype=torch.uint8, device=x.device)
        self.x, self.out = x, out  # [C, H, W]

    def _places(self, at: int, plane: int, pitch: int, planes: int, h: int, w: int, lanes: int = 1) -> Tensor:
        """[planes, h, w, 4]: where the bytes of an activation lie, those of the first image."""
        sizes = ((planes, plane), (h, pitch), (w, 4 * lanes), (4, 1))
        index = torch.tensor(at, device=self.x.device)
        for size, stride in sizes:
            index = index.unsqueeze(-1) + torch.arange(size, device=self.x.device) * stride
        return index

    def load(self, s: Step) -> None:
        if self.x.is_floating_point():
            inverse, low, high = self.floats[s.floats : s.floats + 3]
            steps = torch.nan_to_num(self.x * inverse, nan=0.0, posinf=torch.inf, neginf=-torch.inf)
            q = (steps.clamp(low, high).round() + s.zero_point).to(torch.uint8)
        else:
            q = self.x.view(torch.uint8) ^ (0x80 if s.flip else 0)
        padded = torch.full((4 * s.planes, s.h, s.w), s.zero_point, dtype=torch.uint8, device=q.device)
        padded[: s.channels] = q
        self._scatter(s, padded.view(s.planes, 4, s.h, s.w).permute(0, 2, 3, 1))

    def split(self, s: Step) -> None:
        self._scatter(s, self.arena[self._places(s.x, s.x_plane, s.x_pitch, s.planes, s.h, s.w, s.x_lanes)])

    def _scatter(self, s: Step, pixels: Tensor) -> None:
        """[planes, h, w, 4] into phases."""
        self.arena[s.y : s.y + s.planes * s.y_plane] = s.zero_point
        for ph in range(s.phases_h):
            for pw in range(s.phases_w):
                y0, x0 = (ph - s.pad_h) % s.stride_h, (pw - s.pad_w) % s.stride_w
                part = pixels[:, y0 :: s.stride_h, x0 :: s.stride_w]
                at = s.y + s.y_lead + (ph * s.phases_w + pw) * s.phase
                at += (y0 + s.pad_h) // s.stride_h * s.y_pitch + (x0 + s.pad_w) // s.stride_w * 4 * s.y_lanes
                h, w = part.shape[1:3]
                self.arena[self._places(at, s.y_plane, s.y_pitch, s.planes, h, w, s.y_lanes)] = part

    def _weights(self, s: Step) -> tuple[Tensor, Tensor]:
        """Where the taps lie, and [O, taps * 4] weights for them."""
        rows = s.block_rows or 4
        if s.block_rows == 0:
            offsets = self.indices[s.offsets : s.offsets + s.blocks].repeat(s.planes)
            row = torch.arange(s.planes, device=offsets.device).repeat_interleave(s.blocks)
        else:
            bounds = self.indices[s.row_offsets : s.row_offsets + 4 * s.planes // rows + 1]
            offsets = self.indices[s.offsets : s.offsets + int(bounds[-1])]
            row = torch.repeat_interleave(torch.arange(bounds.numel() - 1, device=bounds.device), bounds.diff())
        taps, tap = offsets.unique(return_inverse=True)
        values = self.values[s.values : s.values + offsets.numel() * rows * 4].view(-1, rows, 4)
        matrix = torch.zeros(4 * s.planes // rows, taps.numel(), rows, 4, dtype=torch.float64, device=taps.device)
        # In narrow images two taps may lie in one place, which is then padding that both read.
        matrix.index_put_((row, tap), values.double(), accumulate=True)
        return taps, matrix.transpose(1, 2).reshape(4 * s.planes, taps.numel() * 4)

    def _write(self, s: Step, q: Tensor) -> None:
        """[16 * vectors, 4 * planes] of steps and zero point; places that are no pixels get the zero point."""
        bits = self.indices[s.masks : s.masks + s.vectors, None] >> torch.arange(LANES, device=q.device) & 1
        q = torch.where(bits.view(-1, 1) != 0, q, s.zero_point).to(torch.uint8)
        for plane in range(s.planes):
            at = s.y + plane * s.y_plane
            self.arena[at - s.y_lead : at] = s.zero_point
            self.arena[at : at + 64 * s.vectors] = q[:, 4 * plane : 4 * plane + 4].reshape(-1)
            self.arena[at + 64 * s.vectors : at + 64 * s.vectors + s.y_tail] = s.zero_point

    def conv(self, s: Step) -> None:
        taps, weights = self._weights(s)
        place = 4 * torch.arange(LANES * s.vectors, device=taps.device)
        at = s.x + place[:, None, None] + taps[:, None] + torch.arange(4, device=taps.device)
        sums = self.arena[at].flatten(1).double() @ weights.T + self.indices[s.starts : s.starts + 4 * s.planes]
        inverse, low, high, residual_scale = self.floats[s.floats : s.floats + 4]
        scale, bias = self.floats[s.floats + 4 :][: 8 * s.planes].view(2, -1)
        y = sums.to(torch.float32) * scale + bias
        if s.residual >= 0:
            q = self.arena[self._places(s.residual, s.residual_plane, 64, s.planes, s.vectors, LANES)]
            added = q.flatten(1, 2).transpose(0, 1).flatten(1).to(torch.int32) - s.residual_zero_point
            y = y + added.to(torch.float32) * residual_scale
        self._write(s, ((y * inverse).round().clamp(low, high) + s.zero_point).clamp(0, 255))

    def max_pool(self, s: Step) -> None:
        taps = self.indices[s.offsets : s.offsets + s.blocks]
        at = self._places(s.x, s.x_plane, 64, s.planes, s.vectors, LANES).unsqueeze(-1) + taps
        self._write(s, self.arena[at].amax(-1).flatten(1, 2).transpose(0, 1).flatten(1).to(torch.float32))

    def _pixels(self, s: Step) -> Tensor:
        """[channels, h, w] uint8 of x."""
        pixels = self.arena[self._places(s.x, s.x_plane, s.x_pitch, s.planes, s.h, s.w, s.x_lanes)]
        return pixels.permute(0, 3, 1, 2).reshape(4 * s.planes, s.h, s.w)[: s.channels]

    def average(self, s: Step) -> None:
        scale, inverse, low, high = self.floats[s.floats : s.floats + 4]
        sums = self._pixels(s).sum((1, 2), dtype=torch.int32) - s.residual_zero_point * s.h * s.w
        y = sums.to(torch.float32) * scale
        if not self.out.is_floating_point():
            q = ((y * inverse).clamp(low, high).round() + s.zero_point).to(torch.uint8)
            y = (q ^ (0x80 if s.flip else 0)).view(self.out.dtype)
        self.out[:, 0, 0] = y

    def store(self, s: Step) -> None:
        self.out.copy_((self._pixels(s) ^ (0x80 if s.flip else 0)).view(self.out.dtype))

    def step(self, s: Step) -> None:
        {
            Kind.LOAD: self.load,
            Kind.SPLIT: self.split,
            Kind.CONV: self.conv,
            Kind.MAX_POOL: self.max_pool,
            Kind.AVERAGE: self.average,
            Kind.STORE: self.store,
        }[Kind(s.kind)](s)


def _fake(x, plan, values, indices, floats, arena, arena_bytes, late_steps, lanes, out_size, out_dtype):
    return _conv.empty_nhwc((x.shape[0], *out_size), out_dtype, x.device)


def _reference(
    x: Tensor,
    plan: Tensor,
    values: Tensor,
    indices: Tensor,
    floats: Tensor,
    arena: Tensor,
    arena_bytes: int,
    late_steps: int,
    lanes: int,
    out_size: Sequence[int],
    out_dtype: torch.dtype,
) -> Tensor:
    out = _fake(x, plan, values, indices, floats, arena, arena_bytes, late_steps, lanes, out_size, out_dtype)
    for n in range(x.shape[0]):
        machine = _Machine(values, indices, floats, arena_bytes, x[n], out[n])
        for ints in plan.tolist():
            machine.step(Step(*ints))
    return out


define(
    f"{OP}(Tensor x, Tensor plan, Tensor values, Tensor indices, Tensor floats, Tensor(a!) arena, int arena_bytes, "
    "int late_steps, int lanes, int[] out_size, ScalarType out_dtype) -> Tensor",
    _reference,
    _fake,
)


def supports(device: torch.device) -> str | None:
    """Why no native kernel serves chains on `device`, or None where one does."""
    return None if device.type == "cpu" else f"chains run on the CPU, on {device.type} layers hand on NHWC"


def _check_sizes(x: Tensor, plan: Tensor, late_steps: int, lanes: int, out_size: Sequence[int]) -> None:
    """Check that a plan is for images of x's size, and gives outputs of the size asked for."""
    if not 0 <= late_steps <= plan.shape[0] or lanes < 1:
        accepted = f"0 to {plan.shape[0]} and at least 1"
        _check.fail(OP, f"late_steps and lanes are {late_steps} and {lanes}, accepted are {accepted}")
    if not x.is_floating_point() and x.shape[1] % 4:
        _check.fail(OP, f"x is {x.dtype} and has {x.shape[1]} channels, accepted is a multiple of 4")
    for s in (Step(*ints) for ints in plan.tolist()):
        if s.kind == Kind.LOAD and (s.channels, s.h, s.w) != tuple(x.shape[1:]):
            _check.fail(OP, f"x has shape {tuple(x.shape)}, the plan accepts [N, {s.channels}, {s.h}, {s.w}]")
        made = {Kind.AVERAGE: (s.channels, 1, 1), Kind.STORE: (s.channels, s.h, s.w)}.get(Kind(s.kind))
        if made is not None and made != tuple(out_size):
            _check.fail(OP, f"out_size is {tuple(out_size)}, the plan gives {made}")


def conv_chain(
    x: Tensor,
    plan: Tensor,
    values: Tensor,
    indices: Tensor,
    floats: Tensor,
    arena: Tensor,
    arena_bytes: int,
    late_steps: int,
    lanes: int,
    out_size: Sequence[int],
    out_dtype: torch.dtype,
) -> Tensor:
    """Run the layers of a plan, image by image; the numbers are those of the layers' own ops.

    The plan must be one that `nn.ConvChain` made for images of this size: its places are not checked again.

    Args:
        x: [N, C, H, W] float32, int8 or uint8.
        plan: [steps, fields of `Step`] int64.
        values: int8 weights; indices: int32; floats: float32; what the steps index.
        arena: uint8, zeros at first; memory to work in, `arena_bytes` and 128 more for each thread that has images of
            its own. Where it is too small, or another call has it, memory is allocated for the call.
        arena_bytes: what a thread needs.
        late_steps: the first step of those that several images take together.
        lanes: how many images a thread takes together.
        out_size: (O, OH, OW).
        out_dtype: float32, int8 or uint8.

    Returns:
        [N, O, OH, OW] of `out_dtype`, channels_last.

    Raises:
        ValueError: a wrong shape, dtype or device.

    Equivalent to the composition of `int8_conv2d`, `sparse_int8_conv2d` and the int8 pooling ops.
    """

    def validate() -> None:
        _check.dtype_in(OP, "x", x.dtype, (torch.float32, *_check.INT8))
        _check.dtype_in(OP, "out_dtype", out_dtype, (torch.float32, *_check.INT8))
        if x.dim() != 4:
            _check.fail(OP, f"x has shape {tuple(x.shape)}, accepted is [N, C, H, W]")
        if plan.dim() != 2 or plan.shape[1] != STEP_INTS:
            _check.fail(OP, f"plan has shape {tuple(plan.shape)}, accepted is [steps, {STEP_INTS}]")
        for name, tensor, dtype in (
            ("plan", plan, torch.int64),
            ("values", values, torch.int8),
            ("indices", indices, torch.int32),
            ("floats", floats, torch.float32),
            ("arena", arena, torch.uint8),
        ):
            _check.dtype_in(OP, name, tensor.dtype, (dtype,))
            if name != "plan" and tensor.dim() != 1:
                _check.fail(OP, f"{name} has shape {tuple(tensor.shape)}, accepted is one dimension")
        _check_sizes(x, plan, late_steps, lanes, out_size)
        _check.device_of(OP, x, plan=plan, values=values, indices=indices, floats=floats, arena=arena)

    def call(op: Callable) -> Tensor:
        return op(x, plan, values, indices, floats, arena, arena_bytes, late_steps, lanes, out_size, out_dtype)

    return run(OP, x.device, supports(x.device), _reference, validate, call)
