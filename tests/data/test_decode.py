"""Pixels: csrc/data against Pillow, to the bit, and against the Python fallback."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data.conftest import needs_native
from tests.data.images import decoded, interlaced_png, jpeg, picture, png
from torchaccel.data import CenterCrop, HorizontalFlip, Normalize, RandomCrop, RandomResizedCrop, Resize, _reference
from torchaccel.data._decode import fill_with
from torchaccel.data.recipes import Plan, Step, compile_recipe

pytestmark = needs_native

PIXELS = picture(157, 121)
JPEGS = {
    **{f"4:{'44 22 20'.split()[s]}": jpeg(PIXELS, subsampling=s) for s in (0, 1, 2)},
    "progressive": jpeg(PIXELS, progressive=True),
    "restarts": jpeg(PIXELS, restart_marker_blocks=2),
    "gray": jpeg(PIXELS, "L"),
    "CMYK": jpeg(PIXELS, "CMYK"),
}
PNGS = {mode: png(PIXELS, mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")} | {"Adam7": interlaced_png(PIXELS)}
FILES = JPEGS | PNGS


def fill(plan: Plan, item: object, by: str = "native", index: int = 0, seed: int = 0, epoch: int = 0) -> np.ndarray:
    out = np.zeros((1, *plan.shape), plan.dtype)
    fill_with(by)(plan, item, index, seed, epoch, out, 0)
    return out[0]


def plan(*steps: Step, shape: tuple[int, int] | None = None, channels: int = 3, channels_last: bool = True) -> Plan:
    return compile_recipe(steps, channels, shape, channels_last)


@pytest.mark.parametrize("name", FILES)
def test_a_whole_image_is_pillows(name: str) -> None:
    assert np.array_equal(fill(plan(shape=PIXELS.shape[:2]), FILES[name]), decoded(FILES[name]))


def test_16_bit_png_is_rounded_to_8_bits() -> None:
    data = png(PIXELS, "I;16")
    wide = np.asarray(Image.open(io.BytesIO(data))).astype(np.float64)
    got = fill(plan(shape=PIXELS.shape[:2]), data)
    assert np.array_equal(got, np.repeat(np.rint(wide / 257).astype(np.uint8)[..., None], 3, 2))
    assert np.array_equal(got, fill(plan(shape=PIXELS.shape[:2]), data, "pillow"))


@pytest.mark.parametrize("name", FILES)
def test_a_region_is_the_slice_of_the_whole(name: str) -> None:
    whole, cut = decoded(FILES[name]), plan(RandomCrop((37, 41)))
    for index in range(40):
        view = _reference.choose_view(cut, 157, 121, 0, 0, index)
        expected = whole[view.top : view.top + 37, view.left : view.left + 41]
        assert np.array_equal(fill(cut, FILES[name], index=index), expected), view


@pytest.mark.parametrize("size", [(64, 64), (200, 31), (121, 80), (11, 300), (1, 1)])
@pytest.mark.parametrize("name", ["4:20", "RGB", "Adam7"])
def test_resizing_is_pillows(name: str, size: tuple[int, int]) -> None:
    image, bilinear = Image.fromarray(decoded(FILES[name])), Image.Resampling.BILINEAR
    got = fill(plan(Resize(size)), FILES[name])
    across_first = image.resize((size[1], image.height), bilinear).resize(size[::-1], bilinear)
    assert np.array_equal(got, np.asarray(across_first))
    # In one step Pillow may begin with the other direction.
    assert np.abs(got.astype(int) - np.asarray(image.resize(size[::-1], bilinear))).max() <= 1


def test_resize_and_center_crop_are_pillows() -> None:
    small = Image.fromarray(decoded(JPEGS["4:20"])).resize((83, 64), Image.Resampling.BILINEAR)  # 64 * 157 / 121
    left = round((83 - 48) / 2)
    assert np.array_equal(
        fill(plan(Resize(64), CenterCrop(48)), JPEGS["4:20"]), np.asarray(small)[8:56, left : left + 48]
    )


def test_center_crop_of_a_smaller_image_is_padded_with_zeros() -> None:
    got = fill(plan(CenterCrop((131, 161))), PNGS["RGB"])
    assert np.array_equal(got[5:126, 2:159], PIXELS)
    assert not got[:5].any() and not got[126:].any() and not got[:, :2].any() and not got[:, 159:].any()


STEPS: tuple[tuple[Step, ...], ...] = (
    (RandomResizedCrop(40),),
    (RandomResizedCrop((24, 50), scale=(0.01, 0.05)), HorizontalFlip()),
    (RandomResizedCrop(16, ratio=(4.0, 5.0)), HorizontalFlip(1.0)),  # does not fit: the central part
    (Resize(45), RandomCrop(40, padding=6), HorizontalFlip()),
    (Resize((33, 77)), CenterCrop(50), HorizontalFlip()),
    (RandomCrop(120, padding=3), HorizontalFlip()),
)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float16])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("steps", STEPS, ids=repr)
def test_every_recipe_type_and_layout_is_the_fallbacks(
    steps: tuple[Step, ...], channels_last: bool, dtype: torch.dtype | None
) -> None:
    steps = steps if dtype is None else (*steps, Normalize(dtype=dtype))
    made = plan(*steps, channels_last=channels_last)
    for index in range(6):
        got, expected = (fill(made, JPEGS["4:22"], by, index, seed=5, epoch=2) for by in ("native", "pillow"))
        assert got.dtype == expected.dtype and got.tobytes() == expected.tobytes(), index


def test_gray_arrays_have_one_channel() -> None:
    gray = np.ascontiguousarray(PIXELS[:, :, 0])
    for steps in STEPS:
        made = plan(*steps, Normalize(0.5, 0.25), channels=1, channels_last=False)
        for index in range(3):
            got, expected = (fill(made, gray, by, index) for by in ("native", "pillow"))
            assert got.shape[0] == 1 and np.array_equal(got, expected)


def test_normalize_is_the_formula() -> None:
    got = fill(plan(Normalize((0.1, 0.2, 0.3), 0.5), shape=PIXELS.shape[:2]), PIXELS)
    x = torch.from_numpy(PIXELS.copy()).float().div(255)
    assert torch.equal(torch.from_numpy(got), x.sub(torch.tensor([0.1, 0.2, 0.3])).div(0.5))


@settings(max_examples=60, deadline=None)
@given(
    image=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    size=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    index=st.integers(0, 2**63),
    seed=st.integers(0, 2**64 - 1),
)
def test_any_size_is_pillows(image: tuple[int, int], size: tuple[int, int], index: int, seed: int) -> None:
    pixels = np.ascontiguousarray(PIXELS[: image[0], : image[1]])
    for made in (plan(RandomResizedCrop(size), HorizontalFlip()), plan(Resize(size)), plan(CenterCrop(size))):
        got, expected = (fill(made, pixels, by, index, seed) for by in ("native", "pillow"))
        assert np.array_equal(got, expected)


def test_simplejpeg_gives_the_same_within_the_stated_tolerance() -> None:
    pytest.importorskip("simplejpeg")
    made = plan(RandomResizedCrop(48), HorizontalFlip())
    for name in ("4:20", "4:22", "4:44", "gray", "CMYK", "progressive"):
        for index in range(5):
            got, expected = (fill(made, JPEGS[name], by, index).astype(int) for by in ("simplejpeg", "native"))
            assert np.abs(got - expected).max() <= 2, name


@pytest.mark.parametrize("item", [PIXELS[:, ::-1], PIXELS.astype(np.int8), PIXELS[:, :, :2].copy(), PIXELS[0]])
def test_pixels_of_another_kind_are_refused(item: np.ndarray) -> None:
    with pytest.raises(ValueError, match="pixels are not a contiguous uint8 array"):
        fill(plan(Resize((8, 8))), item)
