"""Values with tensors in them, in two parts: a pickle of all but the tensors, and the tensors' bytes in one piece."""

from __future__ import annotations

import io
import mmap
import os
import pickle
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

_ALIGNMENT = 64  # bytes of a cache line, and of the widest vector


class Place(NamedTuple):
    """Where and how a tensor lies in a region."""

    offset: int  # bytes
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class _Splitter(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []

    def persistent_id(self, value: Any) -> int | None:
        """Plain tensors stay outside; those of subclasses and of other layouts have their own way to be pickled."""
        if type(value) is not Tensor or value.layout != torch.strided or value.is_quantized:
            return None
        self.tensors.append(value.detach())
        return len(self.tensors) - 1


class _Joiner(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: Sequence[Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, pid: Any) -> Tensor:
        return self._tensors[pid]


def split(value: Any) -> tuple[bytes, list[Tensor]]:
    """A value as the pickle of all but its tensors, and these."""
    file = io.BytesIO()
    splitter = _Splitter(file)
    splitter.dump(value)
    return file.getvalue(), splitter.tensors


def join(header: bytes, tensors: Sequence[Tensor]) -> Any:
    """The value that was split; from processes of one's own alone, as whatever pickle reads."""
    return _Joiner(io.BytesIO(header), tensors).load()


def arrange(tensors: Sequence[Tensor]) -> tuple[list[Place], int]:
    """A place for each tensor, strides kept where they are dense, and the bytes of all."""
    places, end = [], 0
    for tensor in tensors:
        offset = -(-end // _ALIGNMENT) * _ALIGNMENT
        stride = torch.empty_like(tensor, device="meta").stride()
        places.append(Place(offset, tensor.dtype, tuple(tensor.shape), stride))
        end = offset + places[-1].nbytes
    return places, end


def view(region: Tensor, place: Place) -> Tensor:
    """The tensor at a place of a region, uint8 [bytes]."""
    raw = region[place.offset : place.offset + place.nbytes]
    return raw.view(place.dtype).as_strided(place.shape, place.stride)


def write(region: Tensor, places: Sequence[Place], tensors: Sequence[Tensor]) -> None:
    """Copy tensors, from any device, to their places."""
    for place, tensor in zip(places, tensors, strict=True):
        view(region, place).copy_(tensor)


def shared_file(size: int) -> int:
    """Memory that processes share, as a file without a name: it is gone with the last process that holds it."""
    file = os.memfd_create("torchaccel", os.MFD_CLOEXEC)
    os.ftruncate(file, size)
    return file


def mapped(file: int) -> Tensor:
    """The memory of such a file, uint8 [bytes]."""
    return torch.frombuffer(mmap.mmap(file, os.fstat(file).st_size), dtype=torch.uint8)


def room(size: int) -> int:
    """Bytes to map for `size` of them: a power of two, so that batches that grow do not map one by one anew."""
    return 1 << max(size - 1, mmap.PAGESIZE - 1).bit_length()
