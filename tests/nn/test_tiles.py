"""What layers pack for a device that wants tiles. There is no GPU here: the tests say that the CPU is such a device."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from torchaccel.nn import Int8Conv2d, Int8Linear, SparseConv2d, SparseInt8Conv2d
from torchaccel.ops import _library, _tiles

CUDA = torch.device("cuda")


@pytest.fixture
def wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tiles, "wanted", lambda op, device: True)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU with all kernels, as far as questions go."""
    monkeypatch.setattr(_library, "_capability", lambda device: (9, 0))
    monkeypatch.setattr("torchaccel.nn._packed.has_kernel", lambda op, device: True)


def two_four(module: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    with torch.no_grad():
        module.weight[:, ::4] = 0
        module.weight[:, 1::4] = 0
    return module


def tiled(dtype: torch.dtype = torch.float32) -> nn.Conv2d:
    """Two of three tiles pruned."""
    torch.manual_seed(0)
    conv = nn.Conv2d(128, 128, (1, 3), padding=(0, 1)).to(dtype)
    with torch.no_grad():
        conv.weight[:, :, :, 1:] = 0
    return conv


@pytest.mark.usefixtures("wanted")
@pytest.mark.parametrize("dense", [nn.Linear(64, 32), nn.Conv2d(16, 32, 2)], ids=["linear", "conv"])
def test_two_four_weights_are_packed_as_such_unless_told_otherwise(dense: nn.Linear | nn.Conv2d) -> None:
    kind = Int8Linear if isinstance(dense, nn.Linear) else Int8Conv2d
    assert not kind.from_float(dense).is_two_four()
    layer = kind.from_float(two_four(copy.deepcopy(dense)))
    assert layer.is_two_four() and layer.packed.shape[-1] == 5120
    layer.two_four = False
    layer.pack()
    assert layer.packed.shape[-1] == 4096
    for same in (copy.deepcopy(layer), type(layer)(**layer.config())):
        same.load_state_dict(layer.state_dict())
        assert not same.is_two_four() and torch.equal(same.packed, layer.packed)
    assert "packed" not in layer.state_dict()
    full = type(layer)(**layer.config() | {"two_four": True})
    full.load_state_dict(layer.state_dict())
    assert full.is_two_four()


def _sparse_int8(conv: nn.Conv2d, pattern: str) -> SparseInt8Conv2d:
    return SparseInt8Conv2d.from_float(conv, pattern)


@pytest.mark.usefixtures("wanted")
@pytest.mark.parametrize("pattern", ["tile", "4x4", "unstructured"])
@pytest.mark.parametrize("make", [_sparse_int8, SparseConv2d.from_float], ids=["int8", "half"])
def test_tiles_of_zeros_are_skipped_whatever_the_blocks(make, pattern: str) -> None:
    conv = tiled(torch.float32 if make is _sparse_int8 else torch.float16)
    layer = make(conv, pattern)
    kept, each = (4, 4096) if make is _sparse_int8 else (8, 4096)
    assert layer.packed.shape == (kept, each)
    assert layer.tile_offsets.tolist() == [0, kept // 2, kept]
    assert layer.no_gain() is None
    x = torch.randn(2, 128, 3, 5, dtype=conv.weight.dtype)
    y = layer(x)
    torch.testing.assert_close(y, conv(x), rtol=0, atol=0.05)
    names = ("packed", "tile_columns", "tile_offsets")
    assert not set(names) & set(layer.state_dict())
    twin = type(layer)(**layer.config())
    twin.load_state_dict(layer.state_dict())
    for name in names:
        assert torch.equal(getattr(twin, name), getattr(layer, name))
    assert torch.equal(twin(x), y)


@pytest.mark.usefixtures("wanted", "kernels")
def test_a_type_that_the_kernel_takes_is_packed_when_it_comes() -> None:
    layer = SparseConv2d.from_float(tiled(), "tile")
    assert layer.limits(CUDA) == "the CUDA kernel takes torch.float16 and torch.bfloat16, not torch.float32"
    half = copy.deepcopy(layer).half()
    assert half.limits(CUDA) is None and half.packed is not None


@pytest.mark.usefixtures("wanted")
def test_zeros_that_no_kernel_skips_are_no_gain() -> None:
    conv = tiled()
    with torch.no_grad():
        conv.weight.normal_()
        conv.weight[::4] = 0
    layer = SparseInt8Conv2d.from_float(conv, "1x4")
    assert layer.packed.shape == (2, 6, 4096) and layer.tile_columns is None
    assert (
        layer.no_gain() == "its zeros leave no tile of 64 x 64 empty and are not 2:4, which is what CUDA kernels skip"
    )
    assert SparseInt8Conv2d.from_float(two_four(conv), "2:4").no_gain() is None


@pytest.mark.usefixtures("kernels")
def test_limits_of_the_cuda_kernels() -> None:
    def of(layer: nn.Module) -> str | None:
        return layer.unsupported(CUDA)

    assert of(Int8Linear(7, 5)) is None and of(Int8Conv2d(3, 5, 3)) is None
    assert of(Int8Conv2d(8, 8, 3, groups=4)) == "the CUDA kernel takes one group, not 4"
    assert of(SparseInt8Conv2d(64, 64, 1, pattern="tile")) is None
    assert of(SparseConv2d(64, 64, 1, dtype="bfloat16")) is None
    assert "multiples of 8, not 4" in str(of(SparseConv2d(4, 4, 1, dtype="bfloat16")))


def test_without_a_kernel_that_is_said() -> None:
    assert Int8Linear(7, 5).unsupported(CUDA) == "no native kernel for int8_linear on cuda (see torchaccel doctor)"
    layer: Tensor | None = SparseConv2d.from_float(tiled(torch.float16), "tile").packed
    assert layer is None
    assert SparseInt8Conv2d.from_float(tiled(), "tile").no_gain() is None
    sparse = SparseInt8Conv2d(64, 64, 1, pattern="tile")
    assert sparse.unsupported(torch.device("cpu")) == "the CPU kernel takes blocks of 1x4 and 4x4, not 64x64"
    assert "kernel=reference" in repr(sparse)
