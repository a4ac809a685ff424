"""Without csrc/data: who stands in, that a loader works alike, and what is said where nobody can."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.data.conftest import needs_native
from tests.data.images import jpeg, picture
from torchaccel import _native
from torchaccel.data import Arrays, ImageFolder, Loader, Resize, _decode, decoder
from torchaccel.data.recipes import Step

Without = Callable[..., None]


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Iterator[Without]:
    """Call with what is missing besides csrc/data: "pillow", "simplejpeg"."""

    def make(*packages: str) -> None:
        version = _decode._version
        monkeypatch.setattr(_native, "data", lambda: (None, "a planted reason"))
        monkeypatch.setattr(_decode, "_version", lambda name: None if name in packages else version(name))
        decoder.cache_clear()

    yield make
    monkeypatch.undo()
    decoder.cache_clear()


def images_of(loader: Loader) -> np.ndarray:
    return np.concatenate([images.numpy() for images, _ in loader])


@needs_native
@pytest.mark.parametrize("missing", [(), ("simplejpeg",)])
def test_a_loader_gives_the_same_within_the_stated_tolerance(
    without: Without, missing: tuple[str, ...], source: ImageFolder, recipe: list[Step]
) -> None:
    with Loader(source, 9, recipe[:2], shuffle=True, seed=2) as loader:
        native = images_of(loader)
    without(*missing)
    assert decoder().by == ("pillow" if missing else "simplejpeg") and decoder().reason == "a planted reason"
    with Loader(source, 9, recipe[:2], shuffle=True, seed=2, threads=2) as loader:
        got = images_of(loader)
        assert set(loader.stats().stages) == {"read", "idle"}
    assert np.abs(got.astype(int) - native).max() <= 2


def test_damage_is_refused_too(without: Without, tmp_path: Path) -> None:
    good = jpeg(picture(60, 50))
    for name, data in {
        "a": good,
        "b": good[: len(good) // 2],
        "c": b"text",
        "d": b"",
        "e": b"\x89PNG" + bytes(60),
    }.items():
        (tmp_path / f"{name}.jpg").write_bytes(data)
    source = ImageFolder(tmp_path)
    (tmp_path / "c.jpg").unlink()
    without()
    with Loader(source, 5, [Resize((8, 8))], on_error="skip") as loader, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(images_of(loader)) == 1
    reasons = {fault.index: fault.reason for fault in loader.faults}
    assert "end is missing" in reasons[1] and reasons[2] == "No such file or directory"
    assert reasons[3] == "the file is empty" and "damaged PNG" in reasons[4]


def test_without_any_decoder(without: Without, source: ImageFolder) -> None:
    without("pillow")
    assert decoder().by == "none" and "Pillow, which could stand in, is not installed" in (decoder().reason or "")
    with Loader(source, 4, [Resize((8, 8))]) as loader:
        with pytest.raises(RuntimeError, match=r"no image decoder is installed: a planted reason.*pip install pillow"):
            next(iter(loader))
    with Loader(Arrays(np.zeros((4, 3, 3), np.uint8)), 4) as loader:
        with pytest.raises(RuntimeError, match="no image decoder is installed"):
            next(iter(loader))
