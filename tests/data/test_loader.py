"""The loader as one iterates over it: batches, orders, ranks, memory, statistics."""

from __future__ import annotations

import gc
import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from tests.data.conftest import needs_native
from tests.data.images import jpeg, picture
from torchaccel.data import Arrays, CenterCrop, HorizontalFlip, ImageFolder, Loader, Normalize, RandomCrop, Stats
from torchaccel.data.recipes import Step

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 12, 10, 3), np.uint8)
LABELS = np.arange(50)


class Own:
    """A source of one's own over encoded images."""

    def __init__(self, source: ImageFolder) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> tuple[bytes, int]:
        return Path(self.source.paths[index]).read_bytes(), int(self.source.labels(np.array([index]))[0])


class Plain(Dataset):
    """A Dataset with Python transforms."""

    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | int]:
        return {"x": torch.full((2, 3), float(index)), "y": index}


def digest(loader: Loader) -> str:
    """A hash of all batches of an epoch."""
    found = hashlib.sha256()
    for images, labels in loader:
        found.update(images.contiguous().numpy().tobytes())
        found.update(labels.numpy().tobytes())
    return found.hexdigest()


@needs_native
def test_the_same_for_any_number_of_threads_and_any_reader(source: ImageFolder, recipe: list[Step]) -> None:
    found = set()
    for threads, read in ((1, source), (2, source), (8, source), (3, Own(source))):
        with Loader(read, 7, recipe, shuffle=True, seed=9, threads=threads) as loader:
            found.add(digest(loader))
    assert len(found) == 1


@needs_native
def test_epochs_seeds_and_orders_differ(source: ImageFolder, recipe: list[Step]) -> None:
    with Loader(source, 16, recipe, shuffle=True, seed=1) as loader:
        first, second = digest(loader), digest(loader)
        loader.set_epoch(0)
        again = digest(loader)
    with Loader(source, 16, recipe, shuffle=True, seed=2) as other, Loader(source, 16, recipe, seed=1) as ordered:
        assert len({first, second, digest(other), digest(ordered)}) == 4 and again == first


def test_like_a_data_loader_on_arrays() -> None:
    with Loader(Arrays(IMAGES, LABELS), 8) as loader:
        theirs = DataLoader(
            torch.utils.data.TensorDataset(torch.from_numpy(IMAGES).permute(0, 3, 1, 2), torch.from_numpy(LABELS)), 8
        )
        assert len(loader) == len(theirs) == 7
        for (x, y), (a, b) in zip(loader, theirs, strict=True):
            assert torch.equal(x, a) and torch.equal(y, b) and x.is_contiguous()


def test_a_dataset_is_collated_as_a_data_loader_does() -> None:
    with Loader(Plain(), 5, threads=3) as loader:
        for ours, theirs in zip(loader, DataLoader(Plain(), 5), strict=True):
            assert torch.equal(ours["x"], theirs["x"]) and torch.equal(ours["y"], theirs["y"])  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="own transforms"):
        Loader(Plain(), 5, [CenterCrop(3)])


def test_drop_last_and_labels() -> None:
    with Loader(Arrays(IMAGES), 16, drop_last=True) as loader:
        assert len(loader) == 3 and [len(x) for x, _ in loader] == [16] * 3
        assert all((y == -1).all() for _, y in loader)


def test_channels_last() -> None:
    with Loader(Arrays(IMAGES, LABELS), 50, channels_last=True) as loader:
        ((x, _),) = loader
        assert x.shape == (50, 3, 12, 10) and x.is_contiguous(memory_format=torch.channels_last)
        assert np.array_equal(x.permute(0, 2, 3, 1).numpy(), IMAGES)


@pytest.mark.parametrize("count", [50, 48, 49, 33, 2])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_every_sample_and_have_as_many_batches(world: int, count: int) -> None:
    batches = []
    for rank in range(world):
        with Loader(
            Arrays(IMAGES[:count], LABELS[:count]), 4, shuffle=True, seed=3, rank=rank, world=world, threads=1
        ) as loader:
            batches.append([y.tolist() for _, y in loader])
            assert len(batches[-1]) == len(loader)
    assert len({len(b) for b in batches}) == 1
    seen = [label for rank in batches for batch in rank for label in batch]
    assert set(seen) == set(range(count)) and len(seen) - count < world  # repeated only where a rank had none


@needs_native
def test_kept_batches_stay_as_they_are(source: ImageFolder, recipe: list[Step]) -> None:
    with Loader(source, 4, recipe, slots=2) as loader:
        kept = [images for images, _ in loader]
        copies = [images.clone() for images in kept]
        digest(loader)
        assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))
        ring = loader._ring
        assert ring is not None and ring.made > len(kept)
        gc.collect()  # must not take slots that are lent
        kept.clear()
        digest(loader)
        assert ring.made <= 2, "memory beyond the slots goes when nobody keeps it"


@needs_native
def test_views_and_autograd_keep_a_batch(source: ImageFolder) -> None:
    weight = torch.ones((), requires_grad=True)
    with Loader(source, 4, [CenterCrop(24), Normalize()], slots=2) as loader:
        held = []
        for images, _ in loader:
            held.append(((images * weight).sum(), images.sum(), images[0, 0]))
        for product, total, _ in held:
            weight.grad = None
            product.backward()
            assert weight.grad is not None and torch.equal(weight.grad, total)


def test_memory_is_used_again() -> None:
    with Loader(Arrays(IMAGES), 5, slots=3) as loader:
        places = set()
        for _ in range(40):
            for images, _labels in loader:
                places.add(images.data_ptr())
        assert loader._ring is not None and len(places) <= 3 and loader._ring.made <= 3


def test_two_loaders_at_once_and_one_iteration_each() -> None:
    with Loader(Arrays(IMAGES, LABELS), 7) as a, Loader(Arrays(IMAGES, LABELS), 7, seed=1) as b:
        for (x, _), (y, _) in zip(a, b, strict=True):
            assert torch.equal(x, y)
        first = iter(a)
        next(first)
        next(iter(a))
        with pytest.raises(RuntimeError, match="another iteration"):
            next(first)


def test_break_is_followed_by_the_next_epoch() -> None:
    with Loader(Arrays(IMAGES, LABELS), 7, shuffle=True) as loader:
        orders = []
        for _ in range(3):
            for _, labels in loader:
                orders.append(labels.tolist())
                break
        assert len({tuple(o) for o in orders}) == 3 and loader.state_dict()["epoch"] == 2


@pytest.mark.parametrize("shift", [0, 2])
def test_random_crops_of_small_gray_arrays(shift: int) -> None:
    gray = np.ascontiguousarray(IMAGES[:, :, :, 0])
    steps: list[Step] = [RandomCrop((12, 10), padding=shift), HorizontalFlip(0.0), Normalize(0.0, 1.0)]
    with Loader(Arrays(gray), 50, steps) as loader:
        ((x, _),) = loader
    assert x.shape == (50, 1, 12, 10) and x.dtype == torch.float32
    same = [np.allclose(a[0].numpy() * 255, b) for a, b in zip(x, gray, strict=True)]
    assert all(same) if shift == 0 else sum(same) < 10


@needs_native
def test_statistics_add_up(source: ImageFolder, recipe: list[Step]) -> None:
    with Loader(source, 12, recipe) as loader:
        assert loader.stats().verdict == "nothing was loaded yet"
        digest(loader)
        stats = loader.stats()
    assert stats.batches == 4 and stats.samples == 48 and stats.failed == 0
    assert 0 <= stats.wait <= stats.seconds and set(stats.stages) == {"read", "decode", "resize", "idle"}
    assert stats.stages["decode"] > 0 and stats.stages["resize"] > 0 and 0 <= stats.ready <= 4


def test_the_verdict_names_the_slower_side() -> None:
    stages = {"read": 1.0, "decode": 6.0, "resize": 3.0, "idle": 0.0}
    waiting = Stats(10, 100, 0, seconds=10.0, wait=6.3, first=0.1, stages=stages, ready=0.0, slots=4)
    assert waiting.verdict == "loader-bound 63%: decode takes 60% of its work"
    resting = Stats(10, 100, 0, seconds=10.0, wait=0.05, first=0.1, stages=stages | {"idle": 10.0}, ready=3.0, slots=4)
    assert resting.verdict == "model-bound: it waited 0.5% of the time, the loader's threads were idle 50%"
    curves = {}

    class Writer:
        def add_scalar(self, name: str, value: float, step: int) -> None:
            curves[name] = (value, step)

    waiting.write(Writer(), 7)
    assert curves["loader/wait_share"] == (0.63, 7) and curves["loader/stage/decode"] == (0.6, 7)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"slots": 1}, "slots is 1"),
        ({"seed": -1}, "seed is -1"),
        ({"rank": 2, "world": 2}, "rank is 2 of world 2"),
        ({"world": 2}, "rank is None, world is 2, accepted are both or neither"),
        ({"rank": 0}, "rank is 0, world is None, accepted are both or neither"),
        ({"on_error": "ignore"}, "accepted are raise, skip, substitute"),
        ({"timeout": 0}, "timeout is 0"),
        ({"source": []}, "empty"),
        ({"source": {1, 2}}, "source is a set"),
    ],
)
def test_bad_arguments_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Loader(**({"source": Arrays(IMAGES), "batch_size": 4} | options))


def test_sources_refuse_what_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="which is not a folder"):
        ImageFolder(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"holds no \.jpg"):
        ImageFolder(tmp_path)
    for images in (IMAGES.astype(np.float32), IMAGES[0, 0], IMAGES[..., :2], IMAGES[:0]):
        with pytest.raises(ValueError, match="accepted is uint8"):
            Arrays(images)
    with pytest.raises(ValueError, match="50 images have 3 labels"):
        Arrays(IMAGES, [1, 2, 3])
    (tmp_path / "a.webp").write_bytes(b"")
    (tmp_path / "b.jpg").write_bytes(jpeg(picture(20, 20)))
    with pytest.warns(UserWarning, match=r"\.webp are left out"):
        assert len(ImageFolder(tmp_path)) == 1


def test_read_may_return_pixels_or_bytes_and_nothing_else() -> None:
    class Mixed:
        def __len__(self) -> int:
            return 3

        def read(self, index: int) -> object:
            pixels = picture(30, 20, index)
            return (pixels[:, ::-1], io.BytesIO(jpeg(pixels)).getbuffer(), "/etc/hostname")[index]

    with Loader(Mixed(), 3, [CenterCrop(16)], on_error="skip") as loader:
        with pytest.warns(UserWarning, match="read returned a str"):
            ((x, y),) = loader
    assert len(x) == 2 and y.tolist() == [-1, -1]
    assert np.array_equal(x[0].permute(1, 2, 0).numpy(), picture(30, 20, 0)[2:18, ::-1][:, 7:23])
