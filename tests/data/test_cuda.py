"""cuda_prefetch: without a GPU it changes nothing; with one, the same values, and memory that is not overwritten."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from torchaccel.data import Arrays, HorizontalFlip, Loader, Normalize, RandomCrop, cuda_prefetch

IMAGES = np.random.default_rng(0).integers(0, 256, (64, 40, 40, 3), np.uint8)
STEPS = (RandomCrop(32), HorizontalFlip(), Normalize())
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def make() -> Loader:
    return Loader(Arrays(IMAGES, np.arange(64)), 6, STEPS, shuffle=True, slots=4)


def test_on_a_cpu_it_passes_batches_and_states_through() -> None:
    with make() as plain, make() as loader:
        wrapped = cuda_prefetch(loader, "cpu")
        assert len(wrapped) == len(plain)
        for (x, y), (a, b) in zip(wrapped, plain, strict=True):
            assert torch.equal(x, a) and torch.equal(y, b) and wrapped.state_dict() == plain.state_dict()
        wrapped.set_epoch(5)
        assert wrapped.state_dict()["epoch"] == 5
        wrapped.load_state_dict(plain.state_dict())
        assert loader.state_dict() == plain.state_dict()


def test_another_device_is_refused() -> None:
    with make() as loader, pytest.raises(ValueError, match="device is 'meta', accepted are CUDA devices and cpu"):
        cuda_prefetch(loader, "meta")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_the_gpu_computes_is_what_the_loader_does(dtype: torch.dtype) -> None:
    """The formula of the GPU, here on the CPU: uint8 now, Normalize later."""
    steps = (*STEPS[:2], Normalize(dtype=dtype))
    with Loader(Arrays(IMAGES), 64, steps) as plain, Loader(Arrays(IMAGES), 64, steps) as loader:
        wrapped = cuda_prefetch(loader, "cpu")
        wrapped._normalize = loader.deliver_uint8()
        assert loader.deliver_uint8() == wrapped._normalize == steps[2], "a second wrapper normalizes too"
        ((pixels, labels),) = loader
        assert pixels.dtype == torch.uint8
        images, _ = wrapped._normalized((pixels, labels))
        ((expected, _),) = plain
        assert images.dtype == dtype and torch.equal(images, expected)


@needs_cuda
@pytest.mark.parametrize("slots", [2, 4])
def test_on_a_gpu_batches_are_the_same(slots: int) -> None:
    with make() as plain, Loader(Arrays(IMAGES, np.arange(64)), 6, STEPS, shuffle=True, slots=slots) as loader:
        wrapped = cuda_prefetch(loader)
        for _ in range(20):
            for (x, y), (a, b) in zip(wrapped, plain, strict=True):
                torch.cuda._sleep(1_000_000)  # work that is still going on when the slot could be used again
                assert x.is_cuda and torch.equal(x.cpu(), a) and torch.equal(y.cpu(), b)
                assert wrapped.state_dict() == plain.state_dict()
