"""Batches on the GPU before they are asked for: copied on a stream of their own, normalized there."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from torchaccel.data.loader import Loader
from torchaccel.data.recipes import Normalize

_AHEAD = 2  # batches that are on their way to the GPU or there


class cuda_prefetch:  # noqa: N801 - used like a function
    """Wrap a loader so that its batches arrive on a GPU, copied while the model works on those before.

    Pixels travel as uint8, a quarter of the bytes of float32, and the recipe's Normalize is done on the GPU. The
    memory of a batch is used again only after its copy is done. On a CPU it passes batches through.

    Args:
        loader: a Loader that is not being iterated; from here on, iterate over the wrapper instead.
        device: a CUDA device, the current one for None where there is one; "cpu" copies nothing.

    Equivalent to moving each batch with .to(device, non_blocking=True), and to the recipe's Normalize.
    """

    def __init__(self, loader: Loader, device: torch.device | str | None = None) -> None:
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.loader, self.device = loader, torch.device(device)
        if self.device.type not in ("cuda", "cpu"):
            raise ValueError(f"cuda_prefetch: device is {str(device)!r}, accepted are CUDA devices and cpu")
        self._state: dict[str, Any] | None = None  # after the batch that was delivered last
        self._normalize: Normalize | None = None
        self._on_device: tuple[Tensor, Tensor] | None = None  # mean and std, float32 [1, C, 1, 1]
        if self.device.type == "cuda":
            self._normalize = loader.deliver_uint8()

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        self._state = None
        return iter(self.loader) if self.device.type == "cpu" else self._prefetched()

    def set_epoch(self, epoch: int) -> None:
        """As Loader.set_epoch."""
        self._state = None
        self.loader.set_epoch(epoch)

    @property
    def sampler(self) -> cuda_prefetch:
        """As Loader.sampler."""
        return self

    @property
    def batch_sampler(self) -> None:
        """As Loader.batch_sampler."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """As Loader.state_dict, after the batch that this wrapper delivered last: what was only prefetched is not
        counted."""
        return self.loader.state_dict() if self._state is None else dict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As Loader.load_state_dict."""
        self._state = None
        self.loader.load_state_dict(state)

    def _prefetched(self) -> Iterator[tuple[Any, Any]]:
        stream = torch.cuda.Stream(self.device)
        batches = iter(self.loader)
        on_their_way: deque[tuple[Any, torch.cuda.Event, dict[str, Any]]] = deque()
        # Batches in host memory and the events after which nothing reads them any more.
        being_read: deque[tuple[torch.cuda.Event, Any]] = deque()
        self._state = self.loader.state_dict()

        def send() -> None:
            batch = next(batches, None)
            if batch is None:
                return
            with torch.cuda.stream(stream):
                there = _map(batch, lambda t: t.to(self.device, non_blocking=True))
                copied = torch.cuda.Event()
                copied.record(stream)
                there = self._normalized(there)
                ready = torch.cuda.Event()
                ready.record(stream)
            being_read.append((copied, batch))
            on_their_way.append((there, ready, self.loader.state_dict()))

        try:
            for _ in range(_AHEAD):
                send()
            while on_their_way:
                there, ready, state = on_their_way.popleft()
                current = torch.cuda.current_stream(self.device)
                current.wait_event(ready)
                _map(there, lambda t, current=current: t.record_stream(current))  # type: ignore[misc]
                while being_read and being_read[0][0].query():
                    being_read.popleft()
                self._state = state
                yield there
                del there
                send()
            self._state = None
        finally:
            for copied, _ in being_read:
                copied.synchronize()

    def _normalized(self, batch: Any) -> Any:
        if self._normalize is None:
            return batch
        images, labels = batch
        if self._on_device is None:
            mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in self._normalize.per_channel(images.shape[1]))
            self._on_device = mean.to(self.device), std.to(self.device)
        mean, std = self._on_device
        return images.to(torch.float32).div_(255).sub_(mean).div_(std).to(self._normalize.dtype), labels


def _map(batch: Any, function: Any) -> Any:
    """The same batch with `function` of each of its tensors."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, list | tuple):
        return type(batch)(_map(part, function) for part in batch)
    if isinstance(batch, dict):
        return {key: _map(part, function) for key, part in batch.items()}
    return batch
