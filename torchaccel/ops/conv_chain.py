"""conv_chain: a run of convolutions and pooling layers in one call, by a plan over one arena.

See csrc/cpu/chain.h for the layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torchaccel.ops import _check, _conv
from torchaccel.ops._chain_machine import Machine
from torchaccel.ops._chain_step import STEP_INTS, Kind, Step
from torchaccel.ops._library import define, run

OP = "conv_chain"


def _fake(x, plan, values, indices, floats, arena, arena_bytes, late_steps, lanes, out_size, out_dtype):
    shape = x.shape[0], *out_size
    if values.dtype == torch.float32 and not _conv.is_nhwc(x):
        return x.new_empty(shape)
    return _conv.empty_nhwc(shape, out_dtype, x.device)


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
        machine = Machine(values, indices, floats, arena_bytes, x[n], out[n])
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
    """Run the layers of a plan, a few images at a time.

    Results of int8 layers are those of the layers' own ops, to the bit; float32 sums are added up in another order, and
    those of dense layers may be made by Winograd's method, four outputs of a row together.

    The plan must be one that `nn.ConvChain` made for images of this size: its places are not checked again.

    Args:
        x: [N, C, H, W] float32, int8 or uint8; float32 where the weights are.
        plan: [steps, fields of `Step`] int64.
        values: the weights, int8 or float32; indices: int32; floats: float32; what the steps index.
        arena: uint8, zeros at first; memory to work in. It is used if it holds `arena_bytes + SCRATCH` bytes for each
            thread, and 128 more. Where it is too small, or another call has it, memory is allocated for the call.
        arena_bytes: what the activations of a thread need.
        late_steps: the first step of those that several images take together.
        lanes: how many images a thread takes together.
        out_size: (O, OH, OW).
        out_dtype: float32, int8 or uint8; float32 where the weights are.

    Returns:
        [N, O, OH, OW] of `out_dtype`, channels_last; where the weights are float32, contiguous unless x is
        channels_last.

    Raises:
        ValueError: a wrong shape, dtype or device.

    Equivalent to the composition of `int8_conv2d`, `sparse_int8_conv2d` and the int8 pooling ops, or of
    `sparse_conv2d`, `F.conv_transpose2d`, `F.max_pool2d` and `F.adaptive_avg_pool2d(x, 1)`, and `torch.cat`.
    """

    def validate() -> None:
        outside = (torch.float32,) if values.dtype == torch.float32 else (torch.float32, *_check.INT8)
        _check.dtype_in(OP, "x", x.dtype, outside)
        _check.dtype_in(OP, "out_dtype", out_dtype, outside)
        if x.dim() != 4:
            _check.fail(OP, f"x has shape {tuple(x.shape)}, accepted is [N, C, H, W]")
        if plan.dim() != 2 or plan.shape[1] != STEP_INTS:
            _check.fail(OP, f"plan has shape {tuple(plan.shape)}, accepted is [steps, {STEP_INTS}]")
        for name, tensor, accepted in (
            ("plan", plan, (torch.int64,)),
            ("values", values, (torch.int8, torch.float32)),
            ("indices", indices, (torch.int32,)),
            ("floats", floats, (torch.float32,)),
            ("arena", arena, (torch.uint8,)),
        ):
            _check.dtype_in(OP, name, tensor.dtype, accepted)
            if name != "plan" and tensor.dim() != 1:
                _check.fail(OP, f"{name} has shape {tuple(tensor.shape)}, accepted is one dimension")
        _check_sizes(x, plan, late_steps, lanes, out_size)
        _check.device_of(OP, x, plan=plan, values=values, indices=indices, floats=floats, arena=arena)

    def call(op: Callable) -> Tensor:
        return op(x, plan, values, indices, floats, arena, arena_bytes, late_steps, lanes, out_size, out_dtype)

    return run(OP, x.device, supports(x.device), _reference, validate, call)
