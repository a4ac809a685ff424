"""cluster_channels_: the same function, more norm in the tiles that stay, and hands off what others see."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchaccel.compress import Sparsity, cluster_channels_, patterns, sparsify_


class Net(nn.Module):
    """conv -> BatchNorm -> relu -> conv -> linear, whose channels belong to hidden groups, shuffled."""

    def __init__(self, shuffled: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(128, 256, 3, padding=1)
        self.norm = nn.BatchNorm2d(256)
        self.second = nn.Conv2d(256, 128, 1)
        self.last = nn.Linear(128, 5)
        group = torch.arange(256) // 64
        if shuffled:
            group = group[torch.randperm(256)]
        with torch.no_grad():
            for o in range(256):
                self.first.weight[o, 64 * (group[o] % 2) :][:64] *= 10
                self.second.weight[64 * (group[o] // 2) :][:64, o] *= 10
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2)
            self.norm.weight.normal_()
            self.norm.bias.normal_()

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(F.relu(self.norm(self.first(x))))
        return self.last(x.mean((2, 3)))


def kept(model: nn.Module, amount: float) -> float:
    """The share of the norm that tile pruning leaves, by the pruning itself."""
    share = 0.0
    for layer in (model.first, model.second):
        score = patterns.scores(layer.weight, "tile").square()
        share += float((score * patterns.largest(score, amount)).sum() / score.sum())
    return share / 2


@pytest.mark.parametrize("amount", [0.5, 0.75])
def test_hidden_groups_are_found_and_the_function_stays(amount: float) -> None:
    model, sorted_ = Net().eval(), Net(shuffled=False).eval()
    x = torch.randn(2, 128, 5, 6)
    expected, before = model(x), kept(model, amount)
    parameters = [id(p) for p in model.parameters()]
    assert cluster_channels_(model, amount) == 1
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    assert [id(p) for p in model.parameters()] == parameters
    after = kept(model, amount)
    assert after > before + 0.9 * (kept(sorted_, amount) - before)
    cluster_channels_(model, amount)
    assert kept(model, amount) >= after, "a second time never loses"


def test_pruned_after_it_less_is_lost() -> None:
    x = torch.randn(4, 128, 5, 6)
    errors = []
    for clustered in (False, True):
        model = Net().eval()
        expected = model(x)
        if clustered:
            cluster_channels_(model, 0.5)
        sparsify_(model, Sparsity("tile", 0.5), filter_fn=lambda m, name: name in ("first", "second"))
        errors.append(float((model(x) - expected).norm() / expected.norm()))
    assert errors[1] < 0.5 * errors[0]


class Residual(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last((self.second(F.relu(self.norm(y))) + y[:, :128]).mean((2, 3)))


class Reused(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.relu(self.norm(self.first(x))))
        return self.last(self.second(F.relu(self.norm(self.first(y)))).mean((2, 3)))


class Read(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.second.weight[0, :5, 0, 0]


class Scaled(Net):
    """A module that is called "relu" and has a weight for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.PReLU(256)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.relu(self.norm(self.first(x)))).mean((2, 3)))


class Across(Net):
    """A linear layer that reads the last of an image's dimensions, of the same size as its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(256, 128)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x.expand(-1, -1, 1, 256))).mean((1, 2)))


@pytest.mark.parametrize("kind", [Residual, Reused, Read, Scaled, Across])
def test_channels_that_others_see_stay(kind: type[Net]) -> None:
    model = kind().eval()
    before = copy.deepcopy(model.state_dict())
    assert cluster_channels_(model, 0.5) == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_hooks_groups_ties_and_masks_are_left_alone() -> None:
    hooked, grouped, tied, masked = Net(), Net(), Net(), Net()
    hooked.first.register_forward_hook(lambda module, args, out: out)
    grouped.first = nn.Conv2d(128, 256, 3, padding=1, groups=2)
    tied.other = nn.Conv2d(256, 128, 1)
    tied.other.weight = tied.second.weight
    sparsify_(masked, Sparsity("tile", 0.5), filter_fn=lambda m, name: name == "first")
    for model in (hooked, grouped, tied, masked):
        assert cluster_channels_(model, 0.5) == 0


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"amount is 1.0, accepted is a number above 0"):
        cluster_channels_(Net(), 1.0)

    class Branching(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else x

    with pytest.raises(ValueError, match="cluster_channels_: the model cannot be traced"):
        cluster_channels_(Branching(), 0.5)
