"""A model behind CUDA graphs: one launch replays all of its kernels, which a small batch spends its time on."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

CAPACITY = 8  # graphs kept; each holds the memory of one run
_SIGHTINGS = 2  # a shape is captured when it comes again: the last batch of an epoch is not worth it,
_SIGHTINGS_IF_FULL = 32  # and many shapes in turn must not capture all the time
_MANY = 256  # shapes remembered without a graph
_CONSTANTS = (type(None), bool, int, float, str, torch.dtype, torch.device)
_LEAVES = (Tensor, nn.Parameter, *_CONSTANTS)

Replay = Callable[[], None]


class Cuda:
    """The calls to torch.cuda; tests put the same three for a CPU in its place."""

    device_type = "cuda"

    def usable(self) -> bool:
        """Whether work may be captured now: not while a caller captures, nor under autocast, which casts weights."""
        return not torch.cuda.is_current_stream_capturing() and not torch.is_autocast_enabled("cuda")

    def capture(self, run: Callable[[], object], device: torch.device) -> tuple[Replay, object]:
        """Warm up on a side stream and record; returns what replays, and the outputs that each replay writes."""
        with torch.cuda.device(device):
            current, side = torch.cuda.current_stream(), torch.cuda.Stream()
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(3):
                    run()
            current.wait_stream(side)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            # Other threads may allocate meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                outputs = run()
        return graph.replay, outputs

    def take_over(self, buffers: Sequence[Tensor], last: Any, device: torch.device) -> Any:
        """Make the current stream wait for the one that used the buffers last; returns the current one."""
        current = torch.cuda.current_stream(device)
        if last is not None and last != current:
            current.wait_stream(last)
            for buffer in buffers:
                buffer.record_stream(current)
        return current


backend = Cuda()


@dataclass
class _Captured:
    inputs: list[Tensor]  # written before each replay
    outputs: list[object]  # leaves; tensors are the graph's own and are copied out
    spec: pytree.TreeSpec
    replay: Replay
    stream: Any

    def __call__(self, inputs: Sequence[Tensor], device: torch.device) -> object:
        self.stream = backend.take_over(self.inputs, self.stream, device)
        for held, given in zip(self.inputs, inputs, strict=True):
            held.copy_(given)
        self.replay()
        copies = {id(y): y.clone() for y in self.outputs if isinstance(y, Tensor)}
        return pytree.tree_unflatten([copies.get(id(y), y) for y in self.outputs], self.spec)


class _Cache:
    """The graphs of one model, and why others are not there; a copy or a pickle of it is empty."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.clear()

    def __reduce__(self) -> tuple[type[_Cache], tuple[()]]:
        return _Cache, ()

    def clear(self) -> None:
        with self.lock:
            self.graphs: OrderedDict[Hashable, _Captured] = OrderedDict()
            self.refused: OrderedDict[Hashable, str] = OrderedDict()
            self.sightings: OrderedDict[Hashable, int] = OrderedDict()

    def due(self, signature: Hashable) -> bool:
        """Count a call without a graph; whether it is time to capture one."""
        if signature in self.refused:
            return False
        count = self.sightings.pop(signature, 0) + 1
        _keep(self.sightings, signature, count, _MANY)
        return count >= (_SIGHTINGS if len(self.graphs) < CAPACITY else _SIGHTINGS_IF_FULL)


def _keep(held: OrderedDict, key: Hashable, value: object, most: int) -> None:
    """Add an entry as the newest, and let the oldest go where there are more than `most`."""
    held[key] = value
    if len(held) > most:
        held.popitem(last=False)


class Graphed(nn.Module):
    """Runs a model for inference by CUDA graphs, one for each signature of inputs, captured when it comes again.

    Results are copies, so that no later call changes them. Inputs on a CPU, inputs that require gradients, training
    mode, autocast, and what cannot be captured run as the model itself; `refused` says why. Calls from several threads
    and streams take turns. Hooks of inner modules run at capture only.

    Args:
        model: its parameters may be changed in place; `to`, `load_state_dict` and the like drop the graphs.

    Equivalent to `torch.cuda.make_graphed_callables(model, inputs)` for inference with any inputs.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training
        self._cache = _Cache()

    @property
    def refused(self) -> list[str]:
        """Why signatures of inputs have no graph, each reason once."""
        return list(dict.fromkeys(self._cache.refused.values()))

    def forward(self, *args: object, **kwargs: object) -> object:
        leaves, structure = _flatten(args, kwargs)
        device = self._device(leaves)
        if device is None:
            return self.model(*args, **kwargs)
        signature = (structure, *map(_facts, leaves))
        cache = self._cache
        with cache.lock, torch.no_grad():
            captured = cache.graphs.get(signature)
            if captured is None and cache.due(signature):
                captured = self._captured(signature, args, kwargs, device)
            if captured is not None:
                cache.graphs.move_to_end(signature)
                return captured([x for x in leaves if isinstance(x, Tensor)], device)
        return self.model(*args, **kwargs)

    def _device(self, leaves: list[Any]) -> torch.device | None:
        """The one device of all inputs, or None where the model has to run by itself."""
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        devices = {x.device for x in tensors}
        if len(devices) != 1 or self.training or torch.compiler.is_compiling():
            return None
        device = devices.pop()
        plain = all(type(x) in _LEAVES for x in leaves)
        if device.type != backend.device_type or not plain or any(x.layout != torch.strided for x in tensors):
            return None
        if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
            return None
        return device if backend.usable() else None

    def _captured(
        self, signature: Hashable, args: tuple[object, ...], kwargs: dict[str, object], device: torch.device
    ) -> _Captured | None:
        cache = self._cache
        try:
            # Buffers made under inference mode could not be written outside of it.
            with torch.inference_mode(False), torch.no_grad():
                made = self._capture(args, kwargs, device)
        except Exception as error:
            reason = f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0][:200]}"
            _keep(cache.refused, signature, reason, _MANY)
            return None
        cache.sightings.pop(signature, None)
        _keep(cache.graphs, signature, made, CAPACITY)
        return made

    def _capture(self, args: tuple[object, ...], kwargs: dict[str, object], device: torch.device) -> _Captured:
        args, kwargs = pytree.tree_map_only(Tensor, lambda x: torch.empty_like(x).copy_(x), (args, kwargs))
        inputs = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        versions = [x._version for x in inputs]
        replay, result = backend.capture(lambda: self.model(*args, **kwargs), device)
        if versions != [x._version for x in inputs]:
            raise ValueError("the model changes its inputs in place")
        outputs, outputs_spec = pytree.tree_flatten(result)
        for y in outputs:
            if not isinstance(y, (Tensor, *_CONSTANTS)):
                raise TypeError(f"the model returns a {type(y).__name__}, whose tensors are not known")
        return _Captured(inputs, outputs, outputs_spec, replay, backend.take_over(inputs, None, device))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Graphed:
        self._cache.clear()
        return super()._apply(fn, recurse)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As `nn.Module.load_state_dict`; the graphs go, since `assign=True` exchanges the parameters."""
        self._cache.clear()
        return super().load_state_dict(*args, **kwargs)


def _flatten(args: tuple[object, ...], kwargs: dict[str, object]) -> tuple[list[Any], Hashable]:
    """The leaves of a call, and its structure."""
    leaves = [*args, *kwargs.values()]
    if all(type(x) in _LEAVES for x in leaves):  # nothing nested: a tenth of the time
        return leaves, (len(args), *kwargs)
    leaves, spec = pytree.tree_flatten((args, kwargs))
    return leaves, repr(spec)


def _facts(leaf: object) -> Hashable:
    """What a graph is made for: the form of a tensor, or the constant itself (1, 1.0 and True apart)."""
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.stride(), leaf.dtype, leaf.device
    return type(leaf), leaf


def graphed(model: nn.Module, device: torch.device) -> nn.Module:
    """The model behind CUDA graphs where `device` has them, else the model itself."""
    return Graphed(model) if device.type == backend.device_type else model
