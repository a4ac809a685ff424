"""Damaged and hostile input: refused by name, under each on_error, and never delivered half-filled."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.conftest import needs_native
from tests.data.images import decoded, interlaced_png, jpeg, picture, png
from torchaccel.data import ImageFolder, Loader, RandomResizedCrop, Resize, SampleError
from torchaccel.data._decode import fill_with
from torchaccel.data._random import substitute
from torchaccel.data.recipes import compile_recipe

pytestmark = needs_native

PIXELS = picture(120, 100)
GOOD = {
    "baseline": jpeg(PIXELS),
    "progressive": jpeg(PIXELS, progressive=True),
    "png": png(PIXELS),
    "interlaced": interlaced_png(PIXELS),
}


def with_size(data: bytes, height: int, width: int) -> bytes:
    """A JPEG whose header claims another size."""
    at = next(i for i in range(len(data)) if data[i] == 0xFF and data[i + 1] in (0xC0, 0xC2))
    return data[: at + 5] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + data[at + 9 :]


def with_tables(data: bytes, counts: list[int]) -> bytes:
    """A JPEG whose first Huffman table has other numbers of codes of each length."""
    at = data.index(b"\xff\xc4") + 5
    return data[:at] + bytes(counts) + data[at + 16 :]


def many_scans() -> bytes:
    """A progressive JPEG of one gray block, in 127 scans of one coefficient each, all as the standard allows."""
    segments = [
        b"\xff\xdb\x00\x43\x00" + b"\x01" * 64,
        b"\xff\xc2\x00\x0b\x08\x00\x08\x00\x08\x01\x01\x11\x00",
        b"\xff\xc4\x00\x14\x00\x01" + bytes(15) + b"\x00",
        b"\xff\xc4\x00\x14\x10\x01" + bytes(15) + b"\x00",
    ]
    scans = [(0, 0x00), *((k, 0x01) for k in range(1, 64)), *((k, 0x10) for k in range(1, 64))]
    segments += [b"\xff\xda\x00\x08\x01\x01\x00" + bytes([k, k, bits]) + b"\x7f" for k, bits in scans]
    return b"\xff\xd8" + b"".join(segments) + b"\xff\xd9"


def with_flipped_bits(data: bytes) -> bytes:
    """A PNG with damage in its last pixels, behind what a crop at the top needs."""
    at = data.rindex(b"IEND") - 20
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


BAD = {
    "empty": b"",
    "text": b"this is a text file named .jpg\n" * 40,
    "Huffman tables with too many codes": with_tables(GOOD["baseline"], [2, 1, 9] + [0] * 13),
    "Huffman tables without the codes": with_tables(GOOD["baseline"], [0] * 15 + [12]),
    "65500 x 65500": with_size(GOOD["baseline"], 65500, 65500),
    "65500 x 2000": with_size(GOOD["progressive"], 65500, 2000),
    "a damaged checksum": with_flipped_bits(GOOD["png"]),
    "only markers": b"\xff\xd8\xff\xd9",
    "GIF": b"GIF89a" + bytes(100),
}


def fill(data: bytes, index: int = 0) -> None:
    plan = compile_recipe([RandomResizedCrop(24, scale=(0.05, 0.3))], 3, None)
    fill_with("native")(plan, data, index, 0, 0, np.zeros((1, *plan.shape), np.uint8), 0)


@pytest.mark.parametrize("name", GOOD)
def test_good_files_are_delivered(name: str) -> None:
    for index in range(20):
        fill(GOOD[name], index)


@pytest.mark.parametrize("name", GOOD)
def test_a_file_cut_anywhere_is_refused_whatever_the_crop(name: str) -> None:
    whole = GOOD[name]
    for percent in range(0, 100, 5):
        for index in range(6):
            with pytest.raises(ValueError, match=r"damaged|neither JPEG nor PNG"):
                fill(whole[: len(whole) * percent // 100], index)
    with pytest.raises(ValueError, match="end is missing"):
        fill(whole[:-2])


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused(name: str) -> None:
    for index in range(6):
        with pytest.raises(ValueError, match=r"damaged|neither JPEG nor PNG|claims"):
            fill(BAD[name], index)


def test_a_header_that_claims_more_rows_than_there_are() -> None:
    plan = compile_recipe([Resize((24, 24))], 3, None)
    with pytest.raises(ValueError, match="damaged JPEG"):
        fill_with("native")(plan, with_size(GOOD["baseline"], 140, 120), 0, 0, 0, np.zeros((1, 3, 24, 24), np.uint8), 0)


def test_more_scans_than_any_encoder_makes_are_refused() -> None:
    with pytest.raises(ValueError, match="damaged JPEG: more than 100 scans"):
        fill(many_scans())


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """12 images; those with numbers 3 and 8 are damaged, 5 is a pipe."""
    for i in range(12):
        (tmp_path / f"{i:02}.jpg").write_bytes(jpeg(picture(80, 60, i)))
    (tmp_path / "03.jpg").write_bytes(GOOD["baseline"][:2000])
    (tmp_path / "08.jpg").write_bytes(b"text")
    (tmp_path / "05.jpg").unlink()
    os.mkfifo(tmp_path / "05.jpg")
    return tmp_path


FAULTS = {3: "end is missing", 5: "not a regular file", 8: "neither JPEG nor PNG"}


def check_faults(loader: Loader, folder: Path) -> None:
    assert {fault.index for fault in loader.faults} == set(FAULTS) and loader.stats().failed == len(FAULTS)
    for fault in loader.faults:
        assert FAULTS[fault.index] in fault.reason and fault.name == str(folder / f"{fault.index:02}.jpg")


def batches(loader: Loader) -> list[torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [images for images, _ in loader]


def expected(index: int) -> np.ndarray:
    plan = compile_recipe([Resize((20, 20))], 3, None)
    out = np.zeros((1, *plan.shape), np.uint8)
    fill_with("pillow")(plan, decoded(jpeg(picture(80, 60, index))), 0, 0, 0, out, 0)
    return out[0]


def test_raise_names_the_sample_and_stops_there(damaged: Path) -> None:
    with Loader(ImageFolder(damaged), 2, [Resize((20, 20))]) as loader:
        iterator = iter(loader)
        next(iterator)
        with pytest.raises(SampleError, match=r"sample 3 \(.*03.jpg\): damaged JPEG: its end is missing") as caught:
            next(iterator)
        assert caught.value.fault.index == 3 and loader.state_dict()["cursor"] == 2
        with pytest.raises(StopIteration):
            next(iterator)


def test_skip_shortens_batches_and_counts(damaged: Path) -> None:
    with Loader(ImageFolder(damaged), 3, [Resize((20, 20))], on_error="skip") as loader:
        found = batches(loader)
        assert [len(b) for b in found] == [3, 1, 2, 3]
        good = [i for i in range(12) if i not in FAULTS]
        assert np.array_equal(torch.cat(found).numpy(), np.stack([expected(i) for i in good]))
        check_faults(loader, damaged)


def test_a_batch_without_a_good_sample_is_left_out(damaged: Path) -> None:
    with Loader(ImageFolder(damaged), 1, [Resize((20, 20))], on_error="skip") as loader:
        assert [len(b) for b in batches(loader)] == [1] * 9
        check_faults(loader, damaged)


def test_substitutes_keep_the_size_and_are_the_same_every_time(damaged: Path) -> None:
    with Loader(ImageFolder(damaged), 3, [Resize((20, 20))], on_error="substitute", seed=4) as loader:
        found = batches(loader)
        assert [len(b) for b in found] == [3] * 4
        check_faults(loader, damaged)
        stands_in = {fault.index: fault.substitute for fault in loader.faults}
        images = torch.cat(found).numpy()
        for index, other in stands_in.items():
            assert other is not None and np.array_equal(images[index], expected(other))
            drawn = [substitute(4, 0, index, attempt, 12) for attempt in range(16)]
            assert other == next(i for i in drawn if i not in FAULTS)


def test_skipped_samples_are_warned_of(damaged: Path) -> None:
    with Loader(ImageFolder(damaged), 12, on_error="skip", recipe=[Resize((20, 20))]) as loader:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            list(loader)
    assert sorted(str(w.message)[8:17] for w in caught) == ["sample 3 ", "sample 5 ", "sample 8 "]


def test_a_file_that_vanishes(damaged: Path) -> None:
    source = ImageFolder(damaged)
    (damaged / "00.jpg").unlink()
    with Loader(source, 12, [Resize((20, 20))], on_error="skip") as loader:
        batches(loader)
        assert loader.faults[0].index == 0 and loader.faults[0].reason == "No such file or directory"


def test_all_bad(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"{i}.jpg").write_bytes(b"text")
    with Loader(ImageFolder(tmp_path), 2, [Resize((8, 8))], on_error="substitute") as loader:
        with pytest.raises(SampleError, match="sample 0"):
            batches(loader)
    with Loader(ImageFolder(tmp_path), 2, [Resize((8, 8))], on_error="skip") as loader:
        assert batches(loader) == [] and loader.stats().failed == 4


NOBODY = """
import os, sys, warnings
warnings.simplefilter("ignore")
from torchaccel.data import ImageFolder, Loader, Resize
source = ImageFolder(sys.argv[1])
os.chmod(sys.argv[1] + "/b", 0)
if os.getuid() == 0:
    os.setresuid(65534, 65534, 65534)
with Loader(source, 4, [Resize((8, 8))], on_error="skip") as loader:
    print(sum(len(images) for images, _ in loader), {fault.reason for fault in loader.faults})
try:
    ImageFolder(sys.argv[1])
except PermissionError as error:
    print(error)
"""


def test_a_folder_without_permission_to_read(tmp_path: Path) -> None:
    root = tmp_path / "images"
    for name in "ab":
        (root / name).mkdir(parents=True)
        for i in range(4):
            (root / name / f"{i}.jpg").write_bytes(GOOD["baseline"])
    for at in (tmp_path, *list(tmp_path.parents)[:-2]):
        at.chmod(at.stat().st_mode | 0o055)
    done = subprocess.run(
        [sys.executable, "-c", NOBODY, str(root)], capture_output=True, text=True, check=False, cwd=Path.cwd()
    )
    (root / "b").chmod(0o755)
    first, second = done.stdout.splitlines() or [done.stderr, ""]
    assert first == "4 {'Permission denied'}" and "Permission denied" in second and second.endswith("/b'")
