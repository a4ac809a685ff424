"""ConvChain: neighbouring layers, int8 or float32, that run as one op, in a layout of their own."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, fx, nn

from torchaccel import ops
from torchaccel.nn import _chain_plan, _inference, _weights
from torchaccel.nn._chain_layout import flattened
from torchaccel.nn._int8_conv import Int8Conv
from torchaccel.nn.add import Add
from torchaccel.nn.contiguous import Contiguous
from torchaccel.nn.dense import DenseConv2d, DenseConvTranspose2d
from torchaccel.nn.int8_add import Int8Add
from torchaccel.nn.int8_pool import Int8AdaptiveAvgPool2d, Int8AvgPool2d, Int8MaxPool2d
from torchaccel.nn.quantize import QuantizeInt8
from torchaccel.nn.sparse_conv2d import SparseConv2d
from torchaccel.nn.upsample import Upsample
from torchaccel.ops import _check, has_kernel
from torchaccel.ops._chain_step import SCRATCH
from torchaccel.ops.conv_chain import supports

_PLANS = 8
"""Sizes of images whose plans are kept."""

TOGETHER = {torch.int8: 8, torch.float32: 4}
"""Images that a thread takes together at most, by the type of the weights: more of float32 would leave L3."""


_FLOATS = (
    SparseConv2d, DenseConv2d, DenseConvTranspose2d, Add, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, Contiguous,
)  # fmt: skip


def in_float(module: nn.Module | None) -> bool:
    """Whether a layer that a chain takes is one of float32 rather than int8; no chain has both."""
    return isinstance(module, _FLOATS)


def _averages_whole_windows(pool: nn.AvgPool2d | Int8AvgPool2d) -> bool:
    """Whether each average is of as many places, counting the padding."""
    if isinstance(pool, nn.AvgPool2d) and pool.divisor_override is not None:
        return False
    return not pool.ceil_mode and (pool.count_include_pad or pool.padding in (0, (0, 0), [0, 0]))


def takes(module: nn.Module, connected: bool = True) -> bool:
    """Whether a layer can be part of a chain: a convolution, transposed too, a sum, pooling, nearest upsampling, or the
    average at the end.

    Args:
        connected: whether int8 layers must give int8 already.
    """
    if isinstance(module, Int8Conv | Int8Add | Int8AvgPool2d) and connected and module.output_dtype not in _check.INT8:
        return False
    if isinstance(module, QuantizeInt8 | Contiguous | Upsample | Add | Int8Add):
        return True
    if isinstance(module, Int8Conv):
        return module.input == "static"
    if isinstance(module, nn.AvgPool2d | Int8AvgPool2d):
        return _averages_whole_windows(module)
    if isinstance(module, SparseConv2d):
        return module.values.dtype == torch.float32
    if isinstance(module, DenseConvTranspose2d):
        return module.weight.dtype == torch.float32
    if isinstance(module, DenseConv2d):
        plain = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return plain and module.weight.dtype == torch.float32
    if isinstance(module, Int8AdaptiveAvgPool2d | nn.AdaptiveAvgPool2d):
        return module.output_size in (1, (1, 1), [1, 1])
    if isinstance(module, nn.MaxPool2d):
        kernel, padding = (_weights.pair("MaxPool2d", n, getattr(module, n), 0) for n in ("kernel_size", "padding"))
        halved = all(2 * p <= k for p, k in zip(padding, kernel, strict=True))
        return halved and not module.ceil_mode and not module.return_indices
    return isinstance(module, Int8MaxPool2d) and not module.ceil_mode


def _pointwise(body: fx.GraphModule) -> bool:
    """Whether no layer reads around a pixel or leaves one out, so that the shape of the image does not matter.

    Int8 images gain nothing by another shape: outside, the channels of a pixel lie side by side.
    """
    windows = [(m.kernel_size, m.stride, m.padding) for m in body.modules() if hasattr(m, "kernel_size")]
    grown = any(isinstance(m, Upsample) for m in body.modules())
    return not grown and all(window == ((1, 1), (1, 1), (0, 0)) for window in windows)


class ConvChain(nn.Module):
    """A run of layers, from one input to one output, as one op: activations stay in a blocked layout in between.

    Args:
        body: the layers as a graph of one placeholder, calls of modules for which `takes` holds, all in int8 or all in
            float32, concatenations of their outputs along channels, and one output.

    Shape: x [N, C, H, W], any strides, float32 or what the first layer reads. Returns what the body returns, in
    float32 layers contiguous unless x is channels_last.

    The plan for a size of images is made at its first call and kept for the last 8 sizes; it copies the weights, so a
    chain must not be trained: `body` is what holds the state. Equivalent to `body(x)`: in int8 to the bit, in float32
    up to the order of the sums, but for dense layers by Winograd's method (csrc/cpu/chain_winograd.inl), whose errors
    are as small as those of sums over all that four neighbouring outputs read.
    """

    def __init__(self, body: fx.GraphModule) -> None:
        super().__init__()
        self.body = body
        floats = any(in_float(module) for module in body.modules())
        self._dtype = torch.float32 if floats else torch.int8
        self._pointwise = floats and _pointwise(body)
        self._plans: OrderedDict[Any, _chain_plan.Plan | None] = OrderedDict()
        self._packed: dict[nn.Module, Any] = {}  # pruned weights, the same for all plans

    def unsupported(self, device: torch.device) -> str | None:
        """Why no native kernel would serve the chain on `device`, or None."""
        if not has_kernel("conv_chain", device):
            return f"no native kernel for conv_chain on {device.type} (see torchaccel doctor)"
        return supports(device)

    def plan(self, x: Tensor, lanes: int) -> _chain_plan.Plan | None:
        """The plan for images of the size of x, `lanes` of which a thread takes together, or None if there is none."""
        _, c, h, w = x.shape
        key = (c, h, w), x.dtype, lanes
        plan = self._plans.get(key)
        if plan is None and key not in self._plans:
            with contextlib.suppress(_chain_plan.UnplannableError):
                plan = _chain_plan.build(self.body, *key, self._packed)
                for other in self._plans.values():  # weights are mostly the same for all sizes
                    if other is not None and torch.equal(other.values, plan.values):
                        plan.values = other.values
            self._plans[key] = plan
            while len(self._plans) > _PLANS:
                self._plans.popitem(last=False)
        return plan

    @torch.compiler.disable
    def _run(self, x: Tensor) -> Tensor:
        if self._pointwise and x.shape[2:] != (shape := flattened(*x.shape[2:])):
            y = self._run(x.reshape(*x.shape[:2], *shape))
            return y.reshape(*y.shape[:2], *x.shape[2:]) if y.shape[2:] == shape else y
        threads = torch.get_num_threads()
        each, left = divmod(x.shape[0], threads)
        groups = -(-each // TOGETHER[self._dtype])
        lanes = -(-each // groups) if each else 1
        if left and lanes > 1:  # the last images alone, each shared by all threads
            return torch.cat([self._run(x[:-left]), self._run(x[-left:])])
        p = self.plan(x, lanes)
        if p is None:
            return self.body(x)
        size = (threads if each else 1) * p.arena_bytes + threads * SCRATCH + 128
        if p.arena.numel() < size:
            p.arena = torch.zeros(size, dtype=torch.uint8)
        return ops.conv_chain(
            x, p.steps, p.values, p.indices, p.floats, p.arena, p.arena_bytes, p.late_steps, p.lanes, p.out_size,
            p.out_dtype,
        )  # fmt: skip

    def _plannable(self, x: Tensor) -> bool:
        if x.device.type != "cpu" or x.dim() != 4 or x.numel() == 0:
            return False
        return x.dtype == torch.float32 or (x.dtype in _check.INT8 and x.shape[1] % 4 == 0)

    def forward(self, x: Tensor) -> Tensor:
        # Dense layers of the body have trainable weights.
        inputs = (x, *self.body.parameters()) if torch.is_grad_enabled() else ()
        guarded = _inference.needs_guard(*inputs)
        source = x.detach() if guarded else x
        if self._plannable(x):
            y = self._run(source)
        else:
            y = self.body(source)
        return _inference.guard(y, *inputs) if guarded else y

    def _forget(self) -> None:
        self._plans.clear()
        self._packed.clear()

    def _apply(self, fn, recurse=True):
        self._forget()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args):
        self._forget()
        super()._load_from_state_dict(*args)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_plans": OrderedDict(), "_packed": {}}

    def extra_repr(self) -> str:
        return f"layers={sum(node.op == 'call_module' for node in self.body.graph.nodes)}"
