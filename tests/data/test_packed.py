"""Packing: the same images, checksums, interruption and resuming, and files that are no packed files."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.conftest import needs_native
from tests.data.images import decoded, jpeg, picture, png, write_folder
from torchaccel.data import CenterCrop, HorizontalFlip, Loader, Normalize, Packed, RandomCrop, Resize, pack
from torchaccel.data import pack as pack_function

pytestmark = needs_native


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "images", 6)


def resized(path: Path, short_side: int) -> np.ndarray:
    pixels = decoded(path.read_bytes())
    share = min(1.0, short_side / min(pixels.shape[:2]))
    width, height = round(pixels.shape[1] * share), round(pixels.shape[0] * share)
    bilinear = Image.Resampling.BILINEAR
    return np.asarray(
        Image.fromarray(pixels).resize((width, pixels.shape[0]), bilinear).resize((width, height), bilinear)
    )


def all_of(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file())


def test_raw_pixels_are_the_resized_images(images: Path, tmp_path: Path) -> None:
    progress = []
    result = pack(images, tmp_path / "x.pack", kind="raw", short_side=64, on_progress=lambda *at: progress.append(at))
    assert result.images == 12 and not result.failed and progress[-1] == (12, 12)
    packed = Packed(tmp_path / "x.pack")
    assert packed.kind == "raw" and packed.classes == ["a", "b"] and packed.check() == []
    for item, path in zip(packed.items(np.arange(12)), all_of(images), strict=True):
        assert np.array_equal(item, resized(path, 64))
    assert packed.labels(np.arange(12)).tolist() == [0] * 6 + [1] * 6
    assert packed.name(7).endswith("x.pack:b/001.jpg")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "x.pack"]


def test_jpegs_are_close_to_the_resized_images_and_small_ones_are_kept(images: Path, tmp_path: Path) -> None:
    pack(images, tmp_path / "x.pack", short_side=64, quality=95)
    with Loader(Packed(tmp_path / "x.pack"), 1, [CenterCrop(64)]) as loader:
        for (x, _), path in zip(loader, all_of(images), strict=True):
            whole = resized(path, 64)
            top, left = round((whole.shape[0] - 64) / 2), round((whole.shape[1] - 64) / 2)
            difference = x[0].permute(1, 2, 0).numpy().astype(int) - whole[top : top + 64, left : left + 64]
            assert np.abs(difference).mean() < 4
    pack(images, tmp_path / "y.pack", short_side=1000)
    packed = Packed(tmp_path / "y.pack")
    (descriptor, offset, size), first = packed.items(np.array([0]))[0], all_of(images)[0].read_bytes()
    assert os.pread(descriptor, size, offset) == first


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_a_loader_reads_it_and_resumes(images: Path, tmp_path: Path, kind: str) -> None:
    pack(images, tmp_path / "x.pack", kind=kind, short_side=64)
    steps = [RandomCrop(48), HorizontalFlip(), Normalize()]
    packed = pickle.loads(pickle.dumps(Packed(tmp_path / "x.pack")))
    with Loader(packed, 5, steps, shuffle=True, threads=2) as loader:
        whole = [images.numpy().copy() for images, _ in loader]
        loader.set_epoch(0)
        next(iter(loader))
        state = loader.state_dict()
    with Loader(Packed(tmp_path / "x.pack"), 5, steps, shuffle=True, threads=1) as loader:
        loader.load_state_dict(state)
        assert all(np.array_equal(x.numpy(), w) for (x, _), w in zip(loader, whole[1:], strict=True))


def test_other_formats_are_converted(tmp_path: Path) -> None:
    for kind in ("BMP", "WEBP", "TIFF", "GIF", "PPM"):
        out = io.BytesIO()
        Image.fromarray(picture(40, 30)).save(out, kind, **({"lossless": True} if kind == "WEBP" else {}))
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"x.{kind.lower()}").write_bytes(out.getvalue())
    assert pack(tmp_path / "in", tmp_path / "x.pack", kind="raw").images == 5
    packed = Packed(tmp_path / "x.pack")
    assert packed.shape == (30, 40) and packed.labels(np.arange(5)).tolist() == [-1] * 5
    exact = [np.array_equal(item, picture(40, 30)) for item in packed.items(np.arange(5))]
    assert exact == [True, False, True, True, True]  # GIF has 256 colours


def test_an_interrupted_run_is_gone_on_with(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = __import__("sys").modules[pack_function.__module__]
    pack(images, tmp_path / "whole.pack", short_side=64)
    monkeypatch.setattr(module, "_FLUSHED", 2)
    converted = []
    convert = module._convert

    def counting(job: object, name: str) -> object:
        converted.append(name)
        return convert(job, name)

    monkeypatch.setattr(module, "_convert", counting)

    def interrupt(done: int, _: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    target = tmp_path / "x.pack"
    with pytest.raises(KeyboardInterrupt):
        pack(images, target, short_side=64, threads=1, on_progress=interrupt)
    assert not target.exists() and (tmp_path / "x.pack.partial").exists()
    with open(tmp_path / "x.pack.partial", "ab") as partial:
        partial.write(b"half a record")
    with open(tmp_path / "x.pack.journal", "a") as journal:
        journal.write('{"offset": 12')
    converted.clear()
    pack(images, target, short_side=64)
    assert len(converted) == 6, "six images had been made safe"
    assert target.read_bytes() == (tmp_path / "whole.pack").read_bytes()


def test_another_job_starts_afresh(images: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.pack"

    def interrupt(done: int, _: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(images, target, short_side=64, on_progress=interrupt)
    pack(images, target, short_side=32)
    pack(images, tmp_path / "whole.pack", short_side=32)
    assert target.read_bytes() == (tmp_path / "whole.pack").read_bytes()


def test_images_that_cannot_be_read_are_named(images: Path, tmp_path: Path) -> None:
    (images / "a" / "000.jpg").write_bytes((images / "a" / "000.jpg").read_bytes()[:900])
    (images / "b" / "zzz.png").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"'a/000\.jpg': damaged JPEG: its end is missing"):
        pack(images, tmp_path / "x.pack")
    result = pack(images, tmp_path / "x.pack", skip=True)
    assert result.images == 11 and [name for name, _ in result.failed] == ["a/000.jpg", "b/zzz.png"]
    packed = Packed(tmp_path / "x.pack")
    assert len(packed) == 11 and packed.name(0).endswith(":a/001.jpg")


def test_damage_is_found(images: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.pack"
    pack(images, path, kind="raw", short_side=32)
    good = path.read_bytes()
    path.write_bytes(good[:5000] + bytes([good[5000] ^ 1]) + good[5001:])
    assert Packed(path).check() == [1]
    for bad in (b"", good[:-1], good + b"x", b"X" + good[1:], good[: len(good) // 2], good[:100]):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match="Packed: "):
            Packed(path)
    index = len(good) - 400
    path.write_bytes(good[:index] + bytes([good[index] ^ 0xFF]) + good[index + 1 :])
    with pytest.raises(ValueError, match="damaged: its index"):
        Packed(path)
    with pytest.raises(FileNotFoundError):
        Packed(tmp_path / "none.pack")


@pytest.mark.parametrize(
    "options, message",
    [({"kind": "webp"}, "kind 'webp'"), ({"short_side": 0}, "short_side 0"), ({"quality": 101}, "quality 101")],
)
def test_bad_arguments_are_refused(options: dict, message: str, images: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        pack(images, tmp_path / "x.pack", **options)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no image"):
        pack(tmp_path, tmp_path / "x.pack")
    with pytest.raises(FileNotFoundError, match="not a folder"):
        pack(tmp_path / "none", tmp_path / "x.pack")


def test_equal_sizes_need_no_crop(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(picture(20, 16, i)))
    (tmp_path / "3.jpg").write_bytes(jpeg(picture(20, 16, 3)))
    pack(tmp_path, tmp_path / "x.pack", kind="raw")
    with Loader(Packed(tmp_path / "x.pack"), 4) as loader:
        ((x, _),) = loader
        assert x.shape == (4, 3, 16, 20) and torch.equal(x[1], torch.from_numpy(picture(20, 16, 1)).permute(2, 0, 1))
    with Loader(Packed(tmp_path / "x.pack"), 4, [Resize((8, 8))]) as loader:
        assert next(iter(loader))[0].shape == (4, 3, 8, 8)
