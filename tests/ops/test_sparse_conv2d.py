"""sparse_conv2d in float32 on the CPU: every instruction set against float64, over tiles, slabs and chunks."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from torchaccel import ops, testing
from torchaccel.ops import blocks
from torchaccel.ops.sparse_conv2d import pack_sparse

PATTERNS = ("unstructured", "1x4", "4x4", "16x1")
# N, C, H, W, O, kernel, stride, padding, dilation. Tiles are 96 pixels, chunks 128 of K, slabs 128 output channels.
GEOMETRIES = [
    (1, 4, 1, 1, 16, (1, 1), (1, 1), (0, 0), (1, 1)),
    (2, 8, 9, 9, 16, (3, 3), (1, 1), (1, 1), (1, 1)),
    (1, 16, 12, 8, 32, (1, 1), (1, 1), (0, 0), (1, 1)),  # one tile of one image
    (3, 136, 7, 7, 48, (1, 1), (1, 1), (0, 0), (1, 1)),  # tiles over images, two chunks
    (2, 32, 14, 14, 272, (1, 1), (1, 1), (0, 0), (1, 1)),  # three slabs
    (5, 20, 6, 5, 16, (3, 3), (2, 2), (1, 1), (1, 1)),
    (1, 12, 20, 19, 16, (3, 2), (1, 2), (0, 1), (2, 1)),
    (2, 8, 23, 40, 16, (7, 7), (2, 2), (3, 3), (1, 1)),
    (1, 8, 9, 31, 16, (2, 5), (3, 3), (2, 4), (2, 2)),  # a stride that is copied pixel by pixel
    (1, 4, 2, 2, 16, (3, 3), (1, 1), (4, 4), (1, 1)),  # windows of nothing but padding
    (2, 64, 4, 4, 1056, (1, 1), (2, 2), (0, 0), (1, 1)),  # more slabs than one run
]


def pruned(o: int, c: int, kernel: tuple[int, int], pattern: str, density: float, g: torch.Generator) -> Tensor:
    rows, columns = blocks.block_of(pattern)
    keep = torch.rand(o // rows, c // columns, *kernel, generator=g) < density
    return torch.randn(o, c, *kernel, generator=g) * keep.repeat_interleave(rows, 0).repeat_interleave(columns, 1)


def check(geometry: tuple, pattern: str, nhwc: bool, residual: bool, activation: str, density: float = 0.3) -> None:
    n, c, h, w, o, kernel, *shape = geometry
    g = torch.Generator().manual_seed(hash((geometry, pattern)) & 0xFFFF)
    x, bias = torch.randn(n, c, h, w, generator=g), torch.randn(o, generator=g)
    weight = pruned(o, c, kernel, pattern, density, g)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), *shape)
    magnitude = F.conv2d(x.double().abs(), weight.double().abs(), bias.double().abs(), *shape)
    added = torch.randn(exact.shape, generator=g) if residual else None
    if added is not None:
        exact, magnitude = exact + added.double(), magnitude + added.double().abs()
    exact = {"none": lambda y: y, "relu": torch.relu, "relu6": F.relu6, "gelu": F.gelu, "silu": F.silu}[activation](
        exact
    )
    x = x.contiguous(memory_format=torch.channels_last) if nhwc else x
    form = blocks.to_blocks(weight, pattern)
    packed = pack_sparse(*form, c, kernel)
    assert packed is not None
    y = ops.sparse_conv2d(x, *form, kernel, bias, added, *shape, activation, packed.tiles)
    if activation in ("gelu", "silu"):
        magnitude = magnitude + 1  # their polynomials err absolutely
    testing.assert_exact_enough(y, exact, magnitude, max(c * kernel[0] * kernel[1], 9))
    same = ops.sparse_conv2d(x, *form, kernel, bias, added, *shape, activation)
    assert torch.equal(y, same), "packed in the call"


def test_there_is_a_kernel() -> None:
    assert ops.has_kernel("sparse_conv2d", "cpu")


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("nhwc", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_geometries(geometry: tuple, nhwc: bool) -> None:
    if nhwc and geometry[7][0] > geometry[8][0] * (geometry[5][0] - 1):
        nhwc = False  # PyTorch's channels_last convolution reads wild addresses for windows of nothing but padding
    for pattern in PATTERNS:
        check(geometry, pattern, nhwc, residual=True, activation="relu")


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "gelu", "silu"])
def test_activations(activation: str) -> None:
    for geometry in (GEOMETRIES[2], GEOMETRIES[3]):  # finished in registers, and image by image
        for nhwc in (False, True):
            check(geometry, "unstructured", nhwc, residual=False, activation=activation)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("density", [0.0, 0.02, 1.0])
def test_densities(density: float) -> None:
    for pattern in ("unstructured", "16x1"):
        check(GEOMETRIES[3], pattern, nhwc=False, residual=True, activation="none", density=density)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("size", [(448, 448), (447, 449)], ids=str)
def test_outputs_that_do_not_stay_in_caches(size: tuple[int, int]) -> None:
    """Whole lines are stored past the caches; planes of the second size begin anywhere."""
    check((1, 32, *size, 8, (1, 1), (1, 1), (0, 0), (1, 1)), "unstructured", False, residual=True, activation="relu")


@pytest.mark.parametrize("o", [1, 2, 3, 5, 127, 129, 131])
@pytest.mark.usefixtures("isa")
def test_odd_channels(o: int) -> None:
    check((2, 150, 5, 5, o, (1, 1), (1, 1), (0, 0), (1, 1)), "unstructured", False, residual=True, activation="relu")
    check((2, 150, 5, 5, o, (1, 1), (1, 1), (0, 0), (1, 1)), "unstructured", True, residual=True, activation="relu")


@pytest.mark.usefixtures("isa", "threads")
def test_threads_and_batches_change_no_bit() -> None:
    g = torch.Generator().manual_seed(1)
    form = blocks.to_blocks(pruned(300, 40, (3, 3), "unstructured", 0.2, g), "unstructured")
    x = torch.randn(5, 40, 11, 11, generator=g)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(ops.sparse_conv2d(x, *form, (3, 3), padding=(1, 1)))
        parts = [ops.sparse_conv2d(part, *form, (3, 3), padding=(1, 1)) for part in x.split(2)]
        results.append(torch.cat(parts))
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_nan_and_infinity_stay_where_they_are() -> None:
    """A pruned weight and the steps that fill a group touch nothing."""
    weight = torch.zeros(5, 130, 1, 1)
    weight[0, 1], weight[1, 129], weight[2, :3] = 2.0, 3.0, 1.0
    x = torch.ones(1, 130, 2, 2)
    x[0, 1, 0, 0], x[0, 1, 1, 1], x[0, 0, 0, 1] = float("nan"), float("inf"), float("-inf")
    y = ops.sparse_conv2d(x, *blocks.to_blocks(weight, "unstructured"), (1, 1))
    assert torch.isnan(y[0, 0, 0, 0]) and y[0, 0, 1, 1] == float("inf") and y[0, 0, 0, 1] == 2
    assert torch.equal(y[0, 1], torch.full((2, 2), 3.0)) and not y[0, 3:].any()
    assert y[0, 2, 0, 1] == float("-inf") and y[0, 2, 1, 0] == 3


def test_a_foreign_packed_tensor_is_refused() -> None:
    form = blocks.to_blocks(torch.randn(8, 8, 1, 1), "unstructured")
    packed = pack_sparse(*form, 8, (1, 1))
    assert packed is not None
    x = torch.ones(1, 8, 3, 3)
    for word, value in ((0, 16), (1, 4), (3, 99), (4, -1), (16, 5), (33, 1 << 20), (34, -1)):
        wrong = packed.tiles.clone()
        wrong[word] = value
        with pytest.raises((RuntimeError, ValueError), match="sparse_conv2d: packed has shape"):
            ops.sparse_conv2d(x, *form, (1, 1), packed=wrong)
    offsets = packed.tiles.clone()
    offsets[48] = -1
    with pytest.raises((RuntimeError, ValueError), match="sparse_conv2d: packed has shape"):
        ops.sparse_conv2d(x, *form, (1, 1), packed=offsets)
    for wrong in (packed.tiles[:-1], packed.tiles.float(), torch.empty(0, dtype=torch.int32)):
        with pytest.raises((RuntimeError, ValueError), match="sparse_conv2d: packed has shape"):
            ops.sparse_conv2d(x, *form, (1, 1), packed=wrong)
