"""Tiles against an unpacker in numpy that follows the layout's description byte by byte, and who asks for them."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
import torch
from torch import Tensor

from torchaccel import ops
from torchaccel.ops import _library, _tiles, blocks

# The package has functions of these names.
int8_linear, int8_conv2d, sparse_conv2d, sparse_int8_conv2d = OPS = [
    import_module(f"torchaccel.ops.{name}")
    for name in ("int8_linear", "int8_conv2d", "sparse_conv2d", "sparse_int8_conv2d")
]

DTYPES = (torch.int8, torch.float16, torch.bfloat16)
SHAPES = [(1, 1), (64, 64), (70, 130), (128, 512), (3, 1000), (65, 32)]


def _values(tile: np.ndarray) -> np.ndarray:
    """[64, 64] bytes of a tile: chunk c of row r lies at chunk c ^ (r >> 1 & 3)."""
    out = np.empty((64, 64), np.int8)
    for r in range(64):
        for c in range(4):
            at = r * 64 + (c ^ (r >> 1 & 3)) * 16
            out[r, c * 16 : c * 16 + 16] = tile[at : at + 16]
    return out


def _place(words: np.ndarray, size: int, row: int, step: int, group: int) -> tuple[int, int]:
    """Where the two kept values of a group lie among its four, from the words that mma.sp's lanes would hold."""
    fragment, g, high = row // 16, row % 16 % 8, row % 16 // 8
    if size == 1:  # 16 groups a step; a lane's word serves one row and 8 groups
        lane = 4 * g + (high if group < 8 else 2 + high)
        nibble = words[(step * 4 + fragment) * 32 + lane] >> (4 * (group % 8)) & 15
    else:  # 8 groups a step; the lanes 2 * step and 2 * step + 1 serve it, 4 groups and two rows a word
        lane = 4 * g + 2 * step + group // 4
        nibble = words[fragment * 32 + lane] >> (16 * high + 4 * (group % 4)) & 15
    return int(nibble & 3), int(nibble >> 2)


def _unpack_tile(tile: np.ndarray, size: int) -> np.ndarray:
    """[64, depth] values, as bytes of `size` each: [64, depth, size]."""
    kept = _values(tile[:4096]).reshape(64, 64 // size, size)
    if tile.size == 4096:
        return kept
    words = tile[4096:].copy().view(np.uint32)
    out = np.zeros((64, 128 // size, size), np.int8)
    per_step = 32 // size // 2  # groups
    for row in range(64):
        for step in range(2):
            for group in range(per_step):
                places = _place(words, size, row, step, group)
                assert places[0] < places[1], "the places of a group must rise"
                at = step * per_step + group
                for i, place in enumerate(places):
                    out[row, 4 * at + place] = kept[row, 2 * at + i]
    return out


def unpack(packed: _tiles.Packed, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The weight [O, K] that these tiles hold; what lies beyond it must be zero."""
    size = torch.empty(0, dtype=dtype).element_size()
    tiles = packed.tiles.numpy()
    depth = (64 if tiles.shape[-1] == 4096 else 128) // size
    bands, across = -(-shape[0] // 64), -(-shape[1] // depth)
    full = np.zeros((bands * 64, across * depth, size), np.int8)
    for band in range(bands):
        if packed.columns is None or packed.offsets is None:
            assert tiles.shape[:2] == (bands, across)
            places = {column: tiles[band, column] for column in range(across)}
        else:
            first, last = packed.offsets[band : band + 2].tolist()
            places = {int(packed.columns[i]): tiles[i] for i in range(first, last)}
        for column, tile in places.items():
            full[band * 64 : band * 64 + 64, column * depth : (column + 1) * depth] = _unpack_tile(tile, size)
    whole = torch.from_numpy(full).view(dtype)[..., 0]
    assert not whole[shape[0] :].any() and not whole[:, shape[1] :].any()
    return whole[: shape[0], : shape[1]]


def weight(shape: tuple[int, int], dtype: torch.dtype, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    if dtype == torch.int8:
        return torch.randint(-127, 128, shape, generator=g).to(dtype)
    return torch.randn(shape, generator=g).to(dtype)


def two_four(shape: tuple[int, int], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """At most two of each four neighbours, at any of the places; some groups have fewer."""
    g = torch.Generator().manual_seed(seed)
    o, k = shape
    ranks = torch.rand(o, -(-k // 4), 4, generator=g).argsort(-1)
    most = torch.randint(0, 3, (o, ranks.shape[1], 1), generator=g)
    return weight(shape, dtype, seed) * (ranks < most).flatten(1)[:, :k]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_dense_tiles(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrix = weight(shape, dtype)
    packed = _tiles.pack(matrix, two_four=False, skip=False)
    assert packed.tiles.shape[-1] == 4096 and packed.columns is None
    assert torch.equal(unpack(packed, shape, dtype), matrix)
    assert torch.equal(packed.tiles, _tiles.pack_whole(matrix))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_two_four_tiles(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrix = two_four(shape, dtype)
    packed = _tiles.pack(matrix, skip=False)
    assert packed.tiles.shape[-1] == (5120 if dtype == torch.int8 else 4608)
    assert _tiles.holds_two_four(packed.tiles)
    assert torch.equal(unpack(packed, shape, dtype), matrix)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", [weight, two_four])
def test_skipped_tiles(make, dtype: torch.dtype) -> None:
    shape = (200, 1100)
    keep = torch.rand(4, 9, generator=torch.Generator().manual_seed(1)) > 0.6
    keep[1] = False  # a band of nothing
    matrix = make(shape, dtype) * keep.repeat_interleave(64, 0).repeat_interleave(128, 1)[: shape[0], : shape[1]]
    packed = _tiles.pack(matrix)
    assert packed.columns is not None and packed.offsets is not None
    whole = _tiles.pack(matrix, skip=False).tiles
    assert packed.tiles.shape[0] < 0.6 * whole.shape[0] * whole.shape[1]
    assert (packed.tiles[:, :4096] != 0).any(1).all(), "no tile of zeros is kept"
    assert packed.offsets.tolist()[1:3] == [packed.offsets[1]] * 2
    for band in range(4):
        columns = packed.columns[packed.offsets[band] : packed.offsets[band + 1]]
        assert (columns.diff() > 0).all()
    assert torch.equal(unpack(packed, shape, dtype), matrix)


def test_a_few_empty_tiles_are_not_worth_skipping() -> None:
    matrix = weight((64, 2048), torch.int8)
    matrix[:, :128] = 0  # 2 of 32 tiles
    assert _tiles.pack(matrix).columns is None
    matrix[:, :256] = 0
    assert _tiles.pack(matrix).columns is not None
    assert _tiles.pack(matrix, skip=False).columns is None


def test_zeros_alone_leave_one_tile() -> None:
    packed = _tiles.pack(torch.zeros(128, 256, dtype=torch.int8), two_four=False)
    assert packed.tiles.shape == (1, 4096) and packed.offsets is not None
    assert packed.offsets.tolist() == [0, 1, 1]


def test_what_cannot_be_packed() -> None:
    with pytest.raises(ValueError, match="pack: matrix has more than two nonzero values among four neighbours"):
        _tiles.pack(torch.ones(4, 8, dtype=torch.int8), two_four=True)
    with pytest.raises(ValueError, match=r"matrix is torch.float32, accepted are torch.int8, torch.float16"):
        _tiles.pack(torch.ones(4, 8))


# Who asks for tiles. There is no GPU here: these tests say that a device wants them, and look at what is packed.


@pytest.fixture
def wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tiles, "wanted", lambda op, device: True)


@pytest.mark.usefixtures("wanted")
def test_pack_int8_chooses_two_four_where_the_kernel_can() -> None:
    matrix = two_four((64, 288), torch.int8)
    assert ops.pack_int8(matrix).shape == (1, 3, 5120)
    assert ops.pack_int8(matrix, in_channels=32).shape == (1, 3, 5120), "3x3 over 32 channels"
    assert ops.pack_int8(matrix, in_channels=8).shape == (1, 5, 4096), "8 channels are no whole 16 bytes"
    assert ops.pack_int8(matrix[:, :280]).shape == (1, 5, 4096)
    assert ops.pack_int8(matrix, two_four=False).shape == (1, 5, 4096)
    assert ops.pack_int8(weight((64, 288), torch.int8)).shape == (1, 5, 4096)
    assert ops.pack_int8(matrix, groups=2, in_channels=64) is None


@pytest.mark.usefixtures("wanted")
def test_sparse_weights_are_packed_whatever_their_blocks() -> None:
    keep = torch.rand(2, 4, 3, 3, generator=torch.Generator().manual_seed(0)) > 0.5
    dense = weight((128, 2304), torch.int8).view(128, 256, 3, 3)
    dense *= keep.repeat_interleave(64, 0).repeat_interleave(64, 1)
    for pattern in ("unstructured", "4x4", "tile"):
        for dtype, packer in (
            (torch.int8, sparse_int8_conv2d.pack_sparse_int8),
            (torch.float16, sparse_conv2d.pack_sparse),
        ):
            packed = packer(*blocks.to_blocks(dense.to(dtype), pattern), 256, (3, 3))
            assert packed is not None and packed.columns is not None
            assert len(packed.columns) == int(keep.sum()) * (1 if dtype == torch.int8 else 2)
            assert torch.equal(unpack(packed, (128, 2304), dtype), blocks.matrix_of(dense.to(dtype)))
    odd = torch.zeros(64, 8, 3, 3, dtype=torch.int8)
    packed = sparse_int8_conv2d.pack_sparse_int8(*blocks.to_blocks(odd, "1x4"), 8, (3, 3))
    assert packed is not None and packed.tiles.shape == (1, 2, 4096) and packed.columns is None


def test_no_kernel_no_tiles() -> None:
    dense = weight((64, 64), torch.float16).view(64, 64, 1, 1)
    assert sparse_conv2d.pack_sparse(*blocks.to_blocks(dense, "1x4"), 64, (1, 1)) is None
    assert sparse_int8_conv2d.pack_sparse_int8(*blocks.to_blocks(dense.to(torch.int8), "1x4"), 64, (1, 1)) is None


@pytest.mark.usefixtures("wanted")
@pytest.mark.parametrize("op", OPS)
def test_an_op_packs_for_itself_where_nothing_is_given(op, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a look at the values, which would wait for the device: 2:4 and empty tiles come as dense ones."""
    name = op.OP
    monkeypatch.setattr(op, "supports", lambda *args, **facts: None, raising=False)
    monkeypatch.setattr(op, "run", lambda name, device, reason, reference, validate, call: call(lambda *given: given))
    w = two_four((64, 144), torch.int8).view(64, 16, 3, 3)
    scales = torch.ones(1), torch.ones(64)
    if name == "sparse_conv2d":
        given = op.sparse_conv2d(torch.ones(1, 16, 5, 5).half(), *blocks.to_blocks(w.half(), "1x4"), (3, 3))
        tiles, *skipped = given[-3:]
        w = w.half()
    elif name == "sparse_int8_conv2d":
        given = op.sparse_int8_conv2d(w[:1, :, :, :], *blocks.to_blocks(w, "1x4"), (3, 3), *scales)
        tiles, *skipped = given[-3:]
    elif name == "int8_conv2d":
        tiles, skipped = op.int8_conv2d(w[:1], w, *scales)[-1], []
    else:
        w = w.flatten(1)
        tiles, skipped = op.int8_linear(w, w, *scales)[-1], []
    assert skipped == [None] * len(skipped)
    matrix = blocks.matrix_of(w)
    assert torch.equal(unpack(_tiles.Packed(tiles, None, None), tuple(matrix.shape), matrix.dtype), matrix)


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (9, 0)])
def test_what_the_cuda_kernels_serve(capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "this GPU")
    cuda, old = torch.device("cuda"), capability < (8, 0)
    out = {"out_dtype": torch.float16}
    for reason in (
        int8_linear.supports(cuda, **out),
        int8_conv2d.supports(cuda, **out, kernel_size=(3, 3), residual_dtype=torch.bfloat16),
        sparse_int8_conv2d.supports(cuda, **out, kernel_size=(15, 1), block=(64, 64)),
        sparse_conv2d.supports(cuda, dtype=torch.bfloat16, in_channels=8, kernel_size=(1, 15)),
    ):
        assert reason == ("the CUDA kernels need compute capability 8.0, this GPU has 7.5" if old else None)
    assert int8_conv2d.supports(cuda, **out, kernel_size=(3, 3), groups=4) == "the CUDA kernel takes one group, not 4"
    assert "up to 15x15, not 3x16" in str(int8_conv2d.supports(cuda, **out, kernel_size=(3, 16)))
    assert int8_conv2d.supports(torch.device("cpu"), out_dtype=torch.int8, kernel_size=(3, 16)) is None
    for dtype, channels, says in (
        (torch.float32, 8, "not torch.float32"),
        (torch.float16, 12, "multiples of 8, not 12"),
    ):
        assert says in str(sparse_conv2d.supports(cuda, dtype=dtype, in_channels=channels, kernel_size=(3, 3)))


def test_what_the_cpu_kernels_serve() -> None:
    cpu = torch.device("cpu")
    for block in blocks.BLOCKS.values():
        reason = sparse_int8_conv2d.supports(cpu, block=block, kernel_size=(3, 3), out_dtype=torch.float32)
        assert (reason is None) == (block in ((1, 4), (4, 4)))
    assert reason == "the CPU kernel takes blocks of 1x4 and 4x4, not 64x128"
