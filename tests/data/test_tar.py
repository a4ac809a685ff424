"""Archives in webdataset's layout: names, labels, shards, and archives that are damaged."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tests.data.conftest import needs_native
from tests.data.images import decoded, jpeg, picture, png
from torchaccel.data import Loader, Resize, Tar

pytestmark = needs_native


def write_tar(path: Path, members: dict[str, bytes], kind: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def shard(start: int, count: int) -> dict[str, bytes]:
    members = {}
    for i in range(start, start + count):
        members[f"part/{i:04}.jpg" if i % 3 else f"part/{i:04}.png"] = (jpeg if i % 3 else png)(picture(30, 20, i))
        members[f"part/{i:04}.cls"] = str(i % 7).encode()
        members[f"part/{i:04}.json"] = b"{}"
    return members


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_images_and_labels_of_all_shards(tmp_path: Path, kind: int) -> None:
    for number in range(3):
        write_tar(tmp_path / f"train-{number:02}.tar", shard(number * 5, 5), kind)
    for pattern in (
        tmp_path / "train-*.tar",
        f"{tmp_path}/train-{{00..02}}.tar",
        [tmp_path / f"train-{number:02}.tar" for number in range(3)],
    ):
        source = Tar(pattern)
        assert len(source) == 15 and source.labels(np.arange(15)).tolist() == [i % 7 for i in range(15)]
    assert source.name(7).endswith("train-01.tar:part/0007")
    with Loader(pickle.loads(pickle.dumps(source)), 4, [Resize((20, 30))], threads=2) as loader:
        images = np.concatenate([x.permute(0, 2, 3, 1).numpy() for x, _ in loader])
    for i, image in enumerate(images):
        assert np.array_equal(image, decoded(shard(i, 1)[f"part/{i:04}.{'jpg' if i % 3 else 'png'}"]))


def test_names_that_need_an_extended_header(tmp_path: Path) -> None:
    name = "a" * 90 + "/" + "b" * 140
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        source = Tar(write_tar(tmp_path / "x.tar", {f"{name}.jpg": jpeg(picture(9, 9)), f"{name}.cls": b" 12\n"}, kind))
        assert source.name(0).endswith(name) and source.labels(np.array([0])).tolist() == [12]


def test_a_sample_without_a_label_has_minus_one(tmp_path: Path) -> None:
    source = Tar(write_tar(tmp_path / "x.tar", {"a.jpg": jpeg(picture(9, 9)), "b.cls": b"3"}))
    assert len(source) == 1 and source.labels(np.array([0])).tolist() == [-1]


def test_damaged_archives_are_refused_by_name(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", shard(0, 4))
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    last = max(member.offset_data for member in members if member.name.endswith("jpg"))
    header = members[4].offset
    bad = {
        "cut": whole[: last + 300],
        "empty": b"",
        "text": b"no archive" * 100,
        "compressed": gzip.compress(whole),
        "damaged header": whole[:header] + b"\xff" * 512 + whole[header + 512 :],
    }
    for name, data in bad.items():
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"Tar: .*x\.tar"):
            pytest.fail(f"{name} was accepted: {len(Tar(path))} images")


@pytest.mark.parametrize(
    "members, message",
    [
        ({"a.jpg": b"x", "a.cls": b"cat"}, "the label of 'a' is b'cat', accepted is an integer"),
        ({"a.jpg": b"x", "a.png": b"y"}, "two images of the sample 'a'"),
        ({"a.txt": b"x"}, "hold no .jpg"),
    ],
)
def test_archives_of_another_layout_are_refused(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tar(write_tar(tmp_path / "x.tar", members))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Tar(tmp_path / "none-*.tar")


def test_an_archive_that_shrinks_is_a_fault_of_its_samples(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", shard(0, 4))
    source = Tar(path)
    with open(path, "r+b") as file:
        file.truncate(int(source._places[2, 1]) + 10)
    with Loader(source, 4, [Resize((8, 8))], on_error="skip") as loader:
        with pytest.warns(UserWarning, match="the file ended after"):
            ((x, _),) = loader
    assert len(x) == 2 and [fault.index for fault in loader.faults] == [2, 3]
