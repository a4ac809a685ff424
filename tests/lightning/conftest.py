"""Every test of Lightning starts from one seed; its small models train fastest on one thread."""

from __future__ import annotations

from collections.abc import Iterator

import lightning.pytorch as pl
import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    pl.seed_everything(0, verbose=False)
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)
