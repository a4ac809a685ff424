"""int8_conv2d and sparse_int8_conv2d on the CPU: every instruction set against the reference, to the bit."""

import pytest
import torch
from torch import Tensor

from tests.ops.native_cases import INT8, OUT, assert_same, epilogue, floats, integers
from torchaccel import ops
from torchaccel.ops import blocks
from torchaccel.ops._conv import output_size
from torchaccel.ops.int8_conv2d import reference as dense_reference
from torchaccel.ops.sparse_int8_conv2d import _reference as sparse_reference
from torchaccel.ops.sparse_int8_conv2d import colsum_of

PATTERNS = ("dense", "1x4", "4x4")
# N, C, H, W, O, kernel, stride, padding, dilation, groups
GEOMETRIES = [
    (1, 1, 9, 8, 5, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (2, 3, 12, 11, 17, (7, 7), (2, 2), (3, 3), (1, 1), 1),
    (3, 5, 6, 7, 33, (3, 2), (1, 2), (0, 1), (2, 1), 1),
    (2, 6, 8, 8, 9, (1, 3), (1, 1), (0, 2), (1, 2), 3),
    (2, 10, 5, 5, 10, (3, 3), (1, 1), (1, 1), (1, 1), 10),
    (2, 32, 6, 5, 64, (3, 3), (1, 1), (1, 1), (1, 1), 2),
    (1, 64, 7, 7, 48, (1, 1), (2, 2), (0, 0), (1, 1), 1),
    (5, 68, 4, 4, 20, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (66, 8, 1, 1, 24, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (2, 4, 9, 9, 8, (2, 5), (3, 1), (2, 4), (2, 2), 1),
    (1, 132, 10, 10, 4, (1, 1), (1, 1), (0, 0), (1, 1), 1),
]
SPARSE = [g for g in GEOMETRIES if g[9] == 1 and g[1] % 4 == 0]


def same(n: int, c: int, size: int, o: int) -> tuple:
    """The geometry of a 3x3 convolution that keeps height and width."""
    return (n, c, size, size, o, (3, 3), (1, 1), (1, 1), (1, 1), 1)


def pruned(weight: Tensor, pattern: str, density: float, seed: int) -> Tensor:
    """`weight` [O, C, kh, kw] with whole blocks of the pattern removed at random."""
    rows = blocks.BLOCKS[pattern][0]
    o, c, kh, kw = weight.shape
    keep = torch.rand((o // rows, c // 4, kh, kw), generator=torch.Generator().manual_seed(seed)) < density
    return weight * keep.repeat_interleave(rows, 0).repeat_interleave(4, 1)


class Case:
    """One convolution with everything random; `run` gives the native result and the reference's."""

    def __init__(
        self,
        geometry: tuple,
        pattern: str,
        a_dtype: torch.dtype = torch.int8,
        out_dtype: torch.dtype = torch.float32,
        per_image: bool = False,
        seed: int = 0,
        density: float = 0.3,
    ) -> None:
        n, c, h, w, o, kernel, stride, padding, dilation, groups = geometry
        self.pattern, self.kernel, self.groups = pattern, kernel, groups
        self.a = integers((n, c, h, w), a_dtype, seed).contiguous(memory_format=torch.channels_last)
        self.b = integers((o, c // groups, *kernel), torch.int8, seed + 1)
        if pattern != "dense":
            self.b = pruned(self.b, pattern, density, seed)
        self.kw = {"stride": stride, "padding": padding, "dilation": dilation, "residual": None, "activation": "none"}
        self.kw |= epilogue(self.a, o, c * kernel[0] * kernel[1], n, seed, out_dtype, per_image)
        self.size = output_size((h, w), kernel, stride, padding, dilation)

    def add_residual(self, dtype: torch.dtype, seed: int = 5) -> None:
        shape = (self.a.shape[0], self.b.shape[0], *self.size)
        self.kw["residual"] = floats(shape, seed) if dtype == torch.float32 else integers(shape, dtype, seed)
        if dtype != torch.float32:
            self.kw["scale_residual"] = torch.tensor([0.03])
            self.kw["zero_point_residual"] = torch.tensor([-9], dtype=torch.int32)

    def run(self, packed: bool = True) -> tuple[Tensor, Tensor]:
        names = ("scale_a", "scale_b", "zero_point", "bias", "residual", "scale_residual", "zero_point_residual")
        front = [self.kw.get(name) for name in names]
        geometry = [self.kw[name] for name in ("stride", "padding", "dilation")]
        end = [self.kw["activation"], self.kw["out_dtype"], self.kw.get("scale_out"), self.kw.get("zero_point_out")]
        if self.pattern == "dense":
            layout = ops.pack_int8(self.b.permute(0, 2, 3, 1).flatten(1), self.groups) if packed else None
            got = ops.int8_conv2d(self.a, self.b, groups=self.groups, packed=layout, **self.kw)
            colsum = self.b.sum((1, 2, 3), dtype=torch.int32)
            return got, dense_reference(self.a, self.b, colsum, *front, *geometry, self.groups, *end, None)
        form = blocks.to_blocks(self.b, self.pattern)
        got = ops.sparse_int8_conv2d(self.a, *form, self.kernel, **self.kw)
        front = [colsum_of(form[0], form[2]), *front]
        no_tiles = None, None, None
        return got, sparse_reference(self.a, *form, *front, self.kernel, *geometry, *end, *no_tiles)


@pytest.mark.parametrize("a_dtype", INT8)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_geometries(isa: str, pattern: str, a_dtype: torch.dtype) -> None:
    for i, geometry in enumerate(GEOMETRIES if pattern == "dense" else SPARSE):
        if pattern == "4x4" and geometry[4] % 4:
            continue
        case = Case(geometry, pattern, a_dtype, OUT[i % 3], i % 2 == 1, i)
        assert_same(*case.run(packed=i % 4 > 0))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("out_dtype", OUT)
def test_epilogues(isa: str, out_dtype: torch.dtype, pattern: str) -> None:
    for geometry in (same(2, 8, 6, 36), (7, 16, 3, 3, 16, (1, 1), (1, 1), (0, 0), (1, 1), 1)):
        for residual in (None, *OUT):
            for i, activation in enumerate(("none", "relu", "gelu", "silu")):
                case = Case(geometry, pattern, INT8[i % 2], out_dtype, i < 2, i)
                case.kw["activation"] = activation
                if residual is not None:
                    case.add_residual(residual)
                assert_same(*case.run(), activation)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_pixel_counts(isa: str, pattern: str) -> None:
    for n in (1, 2, 3, 5, 15, 16, 17, 31, 33, 47, 49, 63, 64, 65, 129):
        geometry = (n, 12, 2, 1, 20, (2, 1), (1, 1), (0, 0), (1, 1), 1)
        assert_same(*Case(geometry, pattern, torch.uint8, per_image=True, seed=n).run())


@pytest.mark.parametrize("pattern", PATTERNS)
def test_empty(isa: str, pattern: str) -> None:
    for n, o in ((0, 8), (2, 0), (0, 0)):
        case = Case(same(n, 8, 4, o), pattern)
        got, want = case.run()
        assert got.shape == want.shape == (n, o, 4, 4)


@pytest.mark.parametrize("pattern", ("1x4", "4x4"))
def test_densities(isa: str, pattern: str) -> None:
    for density in (0.0, 0.02, 1.0):
        assert_same(*Case(same(2, 24, 5, 52), pattern, density=density, seed=3).run())


@pytest.mark.parametrize("pattern", ("1x4", "4x4"))
def test_deep_panels_and_many_channels(isa: str, pattern: str) -> None:
    """More of K than one part of a panel holds, and more output channels than one slab."""
    for c, o in ((144, 20), (720, 12), (160, 532)):
        for density in (0.02, 0.2):
            assert_same(*Case(same(1, c, 8, o), pattern, torch.uint8, density=density, seed=c).run())


@pytest.mark.parametrize("pattern", PATTERNS)
def test_inputs_that_are_not_channels_last(isa: str, pattern: str) -> None:
    case = Case(same(2, 8, 6, 12), pattern)
    case.add_residual(torch.int8)
    want = case.run()[1]
    mixed = case.a.transpose(2, 3).contiguous().transpose(2, 3)
    for a in (case.a.contiguous(), mixed, case.a.repeat(1, 1, 1, 2)[..., :6]):
        case.a = a
        assert_same(case.run()[0], want)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_threads_agree(isa: str, threads: None, pattern: str) -> None:
    for n, size in ((1, 3), (1, 14), (4, 14)):  # fewer panels than threads, and more
        case = Case(same(n, 64, size, 132 if pattern == "4x4" else 130), pattern)
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert_same(*case.run())


@pytest.mark.parametrize("pattern", PATTERNS)
def test_direct_calls_are_checked(pattern: str) -> None:
    case = Case(same(2, 8, 6, 12), pattern)
    case.kw["zero_point"] = torch.tensor([128], dtype=torch.int32)
    with pytest.raises(RuntimeError, match="zero_point is 128, accepted with padding are -128 to 127"):
        case.run()
    case.kw["zero_point"] = None
    case.add_residual(torch.float32)
    case.kw["residual"] = case.kw["residual"][:, :4]
    with pytest.raises(ValueError, match="residual has shape"):
        case.run()


@pytest.mark.parametrize("pattern", ("1x4", "4x4"))
def test_indices_are_checked(pattern: str) -> None:
    case = Case(same(1, 8, 5, 8), pattern)
    values, columns, offsets = blocks.to_blocks(case.b, pattern)
    one = {"scale_a": torch.ones(1), "scale_b": torch.ones(8), "colsum": torch.zeros(8, dtype=torch.int32)}
    for column in (-1, 18, 2**31 - 1, -(2**31)):
        wrong = columns.clone()
        wrong[-1] = column
        with pytest.raises(RuntimeError, match="columns must lie in 0 to 17 and ascend"):
            ops.sparse_int8_conv2d(case.a, values, wrong, offsets, (3, 3), **one)
    for change in ((0, 1), (-1, 10**6), (1, -5)):
        wrong = offsets.clone()
        wrong[change[0]] = change[1]
        with pytest.raises(RuntimeError, match="row_offsets must rise"):
            ops.sparse_int8_conv2d(case.a, values, columns, wrong, (3, 3), **one)


def test_one_pixel_with_padding(isa: str) -> None:
    # Looks like a matrix of few rows, but has more output pixels than input pixels.
    a, b = integers((2, 8, 1, 1), torch.uint8, 31), integers((20, 8, 1, 1), torch.int8, 32)
    kw = {"scale_a": torch.tensor([0.5]), "scale_b": torch.ones(20), "zero_point": torch.tensor([7], dtype=torch.int32)}
    got = ops.int8_conv2d(a, b, padding=(1, 2), **kw)
    inside = ops.int8_linear(a.flatten(1), b.flatten(1), **kw)
    assert got.shape == (2, 20, 3, 5) and torch.equal(got[:, :, 1, 2], inside)
    assert int((got != 0).sum()) == int((inside != 0).sum())
