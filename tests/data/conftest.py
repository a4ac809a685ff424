from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.images import write_folder
from torchaccel.data import HorizontalFlip, ImageFolder, Normalize, RandomResizedCrop, decoder
from torchaccel.data.recipes import Step

needs_native = pytest.mark.skipif(decoder().by != "native", reason=f"csrc/data is not built: {decoder().reason}")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 images of two classes; not to be changed."""
    return write_folder(tmp_path_factory.mktemp("images"), 24)


@pytest.fixture(scope="session")
def source(folder: Path) -> ImageFolder:
    return ImageFolder(folder)


@pytest.fixture(scope="session")
def recipe() -> list[Step]:
    """For training."""
    return [RandomResizedCrop(32), HorizontalFlip(), Normalize()]
