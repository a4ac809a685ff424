"""Reports to test with."""

from __future__ import annotations

from typing import Any

import pytest

from tests.report.example import example


@pytest.fixture
def data() -> dict[str, Any]:
    """A report's data, fresh for each test."""
    return example()


@pytest.fixture
def nothing_won(data: dict[str, Any]) -> dict[str, Any]:
    """The same model where no candidate was faster, and nobody asked for accuracy."""
    for layer in data["layers"]:
        layer |= {"chosen": "dense", "speedup": 1.0, "chosen_ms": 1.0, "reason": "kept dense: 0.97x at N=32"}
    data["baseline"]["accuracy"] = None
    data["gates"] |= {"accuracy_passed": None, "speed_passed": False, "notes": []}
    return data | {"speedup": 1.0, "speedup_ci95": [1.0, 1.0], "optimized": dict(data["baseline"]), "trials": None}
