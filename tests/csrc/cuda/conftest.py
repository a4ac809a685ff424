"""The emulation needs g++, as building the package does not."""

from __future__ import annotations

import shutil

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if shutil.which("g++") is not None:
        return
    for item in items:
        if item.path.name.startswith("test_emulat"):
            item.add_marker(pytest.mark.skip(reason="the emulation needs g++"))
