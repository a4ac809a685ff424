"""PackedModule: buffers that are canonical, and others derived from them for the machine at hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torchaccel.ops import has_kernel


class PackedModule(nn.Module):
    """A module that holds canonical weights in persistent buffers and derives the kernel's layout from them.

    What is derived never travels: it is left out of state dicts and pickles and made anew by `pack` after a load, an
    unpickling, a deepcopy or a move to another device, so that it always matches the weights and the machine.
    """

    op = ""
    """The op that the module calls."""

    derived: tuple[str, ...] = ()
    """Names of the buffers that `pack` sets; None in each stands for "not derived", which the ops take as well."""

    keeps_float32 = True
    """Whether float buffers are scales and the like, which stay float32 under `.half()` and `.to(dtype)`."""

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-able: `type(m)(**m.config())` fits `m.state_dict()`."""
        raise NotImplementedError

    def pack(self) -> None:
        """Derive the buffers of the kernel's layout from the canonical ones."""
        raise NotImplementedError

    def unsupported(self, device: torch.device) -> str | None:
        """Why no native kernel would serve the layer on `device`, or None: there is none, or its `limits`."""
        if not has_kernel(self.op, device):
            return f"no native kernel for {self.op} on {device.type} (see torchaccel doctor)"
        return self.limits(device)

    def limits(self, device: torch.device) -> str | None:
        """What about this layer the op's kernel on `device` does not take, or None."""
        return None

    def check_state(self, state: dict[str, Tensor]) -> None:
        """Raise ValueError where the named buffers hold values that no kernel may see."""

    def _device(self) -> torch.device:
        return next(b.device for b in self.buffers(recurse=False) if b is not None)

    def _repack(self) -> None:
        self._forget()
        if self._device().type != "meta":
            self.pack()

    def _forget(self) -> None:
        for name in self.derived:
            setattr(self, name, None)

    def _apply(self, fn, recurse=True):
        before = {name: b for name, b in self._buffers.items() if b is not None}
        device = self._device()
        super()._apply(fn, recurse)
        if self.keeps_float32:
            for name, old in before.items():
                new = self._buffers[name]
                if new is not None and old.is_floating_point() and new.dtype != old.dtype:
                    self._buffers[name] = old.to(new.device)
        if device.type == "meta":
            self._forget()  # `to_empty` leaves arbitrary bytes, no weights yet
        elif self._device() != device or any(
            self._buffers[name].dtype != old.dtype
            for name, old in before.items()
            if name not in self.derived  # type: ignore[union-attr]
        ):
            self._repack()
        return self

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
        given = {
            name: state_dict[prefix + name]
            for name, b in self._buffers.items()
            if prefix + name in state_dict and b is not None and b.shape == state_dict[prefix + name].shape
        }
        try:
            for name, tensor in given.items():
                accepted = self._buffers[name].dtype  # type: ignore[union-attr]
                if tensor.dtype != accepted:
                    raise ValueError(f"{name} is {tensor.dtype}, accepted is {accepted}")
            self.check_state(given)
        except ValueError as error:
            errors.append(f"{prefix or type(self).__name__}: {error}")
            return
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
        self._repack()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_buffers"] = {k: None if k in self.derived else b for k, b in self._buffers.items()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._repack()
