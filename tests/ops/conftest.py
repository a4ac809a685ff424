"""Fixtures of the native CPU kernels: each available instruction set, and one or two threads."""

from collections.abc import Iterator

import pytest
import torch

from torchaccel import _native


@pytest.fixture(params=_native.isas_available())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Forces one instruction set for the test."""
    before = _native.isa()
    _native.force_isa(request.param)
    yield request.param
    _native.force_isa(before)


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts the number of threads back that the test sets."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
