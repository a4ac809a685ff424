"""What tuning leaves behind: nothing."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import torchaccel as ta
from tests.models import SmallNet

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, nesterov=True),
    "Adam, its rate a tensor": lambda p: torch.optim.Adam(p, torch.tensor(0.01), amsgrad=True),
    "LBFGS": lambda p: torch.optim.LBFGS(p, 0.01, max_iter=2),
}


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    random.random(), np.random.rand(), torch.rand(1)
    return F.cross_entropy(model(batch[0]), batch[1])


def batches(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(8, 3, 8, 8), torch.randint(10, (8,))) for _ in range(count)]


class Trained:
    """A model in the middle of its training: momentum, statistics, gradients and random numbers are under way."""

    def __init__(self, optimizer: str = "SGD") -> None:
        torch.manual_seed(0)
        self.model = SmallNet()
        self.model.block1.bn1.eval()
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        for batch in batches(2):
            self.optimizer.step(lambda batch=batch: self._backward(batch))
        self.tensors = {name: t for name, t in self.model.state_dict(keep_vars=True).items()}
        self.before = copy.deepcopy(self.state())

    def _backward(self, batch: Any) -> Tensor:
        self.optimizer.zero_grad()
        value = loss(self.model, batch)
        value.backward()
        return value

    def state(self) -> list[Any]:
        """A flat list of all that must not change."""
        found = [
            self.model.state_dict(),
            {name: p.grad for name, p in self.model.named_parameters()},
            self.optimizer.state_dict(),
            [module.training for module in self.model.modules()],
            torch.get_rng_state(),
            random.getstate(),
            np.random.get_state(),
        ]
        return [leaf.tolist() if isinstance(leaf, Tensor | np.ndarray) else leaf for leaf in pytree.tree_leaves(found)]

    def assert_untouched(self) -> None:
        assert self.state() == self.before
        assert all(t is self.tensors[name] for name, t in self.model.state_dict(keep_vars=True).items())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_sweep_leaves_nothing_behind(optimizer: str) -> None:
    data = batches()
    trained = Trained(optimizer)
    found = ta.tune.find_lr(trained.model, trained.optimizer, data, loss, steps=20)
    assert len(set(found.losses)) > 3
    trained.assert_untouched()


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_nor_does_one_that_is_interrupted(error: type[BaseException]) -> None:
    def failing(model: nn.Module, batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise error
        return loss(model, batch)

    calls, data = 0, batches()
    trained = Trained()
    with pytest.raises(error):
        ta.tune.find_lr(trained.model, trained.optimizer, data, failing)
    trained.assert_untouched()


def test_nor_does_timing() -> None:
    data = batches()[0]
    trained = Trained()
    ta.tune.find_batch_size(trained.model, data, loss=loss, optimizer=trained.optimizer, max_batch_size=2, budget_s=0.0)
    trained.assert_untouched()
    ta.tune.find_batch_size(trained.model, data[:1], max_batch_size=2, budget_s=0.0)
    trained.assert_untouched()


def test_buffers_that_a_model_replaces_come_back() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("last", None)

        def forward(self, x: Tensor) -> Tensor:
            self.calls, self.last = self.calls + 1, x
            return self.layer(x)

    model = Counting()
    calls = model.calls
    data = [(torch.randn(4, 4), torch.randint(2, (4,)))]
    ta.tune.find_lr(model, torch.optim.SGD(model.parameters()), data, loss, steps=20)
    assert model.calls is calls and calls == 0 and model.last is None


def test_what_an_optimizer_trains_beside_the_model_or_not_at_all_comes_back_too() -> None:
    model, temperature = nn.Linear(4, 2), nn.Parameter(torch.ones(()))
    model.bias.grad = torch.ones(2)
    data = [(torch.randn(4, 4), torch.randint(2, (4,)))]
    optimizer = torch.optim.SGD([model.weight, temperature])
    ta.tune.find_lr(model, optimizer, data, lambda m, b: temperature * loss(m, b), steps=20)
    assert temperature == 1 and temperature.grad is None
    assert torch.equal(model.bias.grad, torch.ones(2)), "nor do gradients gather where no optimizer clears them"


def test_buffers_that_cannot_be_written_keep_nothing_else_from_coming_back() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[0].register_buffer("wide", torch.zeros(4).expand(3, 4))
    with torch.inference_mode():
        model[0].register_buffer("other", torch.zeros(4))
    before = copy.deepcopy(model.state_dict())
    data = [(torch.randn(4, 4), torch.randint(2, (4,)))]
    ta.tune.find_lr(model, torch.optim.SGD(model.parameters()), data, loss, steps=20)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_masks_hold_meanwhile() -> None:
    model = SmallNet()
    ta.sparsify_(model, ta.Sparsity("1x4", 0.75))
    shares = set()

    def looking(model: nn.Module, batch: Any) -> Tensor:
        shares.add(round(float((model.block1.conv1.weight == 0).float().mean()), 3))
        return loss(model, batch)

    ta.tune.find_lr(model, torch.optim.SGD(model.parameters()), batches(), looking, steps=20)
    assert shares == {0.75}


def test_a_loader_goes_back_to_its_place() -> None:
    images = np.arange(40, dtype=np.uint8).reshape(40, 1, 1)
    loader = ta.data.Loader(ta.data.Arrays(images, np.zeros(40, np.int64)), 4, [ta.data.Normalize(0, 1)], shuffle=True)
    iterator = iter(loader)
    for _ in range(3):
        next(iterator)
    before = loader.state_dict()
    expected = [batch[0].clone() for batch in iterator]
    loader.load_state_dict(before)
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    ta.tune.find_lr(model, torch.optim.SGD(model.parameters()), loader, loss, steps=25)
    assert loader.state_dict() == before
    for batch, wanted in zip(loader, expected, strict=True):
        assert torch.equal(batch[0], wanted)
