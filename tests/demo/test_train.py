"""Batches, the training loop and the accuracy of the demo, on a few made-up digits."""

import numpy as np
import pytest
import torch
from torch import nn

from torchaccel.demo.mnist import Mnist
from torchaccel.demo.recipes import MODELS, recipe
from torchaccel.demo.train import SHIFT, Digits, Schedule, accuracy, train

CPU = torch.device("cpu")


def corner(label: int) -> tuple[int, int]:
    return 2 + 6 * (label // 3), 2 + 8 * (label % 3)


@pytest.fixture
def mnist() -> Mnist:
    """Ten classes, each a bright square at a place of its own, too far apart for shifts to mix them up."""
    labels = np.arange(40, dtype=np.uint8) % 10
    images = np.zeros((40, 28, 28), np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = corner(int(label))
        image[row : row + 3, column : column + 3] = 255
    return Mnist(images, labels, images[:20], labels[:20])


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 10)
    )


def pixels(x: torch.Tensor) -> torch.Tensor:
    """Back from the normalised batch to 0..255."""
    return (x * 255 * 0.3081 + 255 * 0.1307).round()


def test_batches_hold_each_digit_once_an_epoch_and_shift_it_slightly(mnist: Mnist) -> None:
    digits = Digits(mnist, CPU)
    seen = [(x, y) for x, y in digits.batches(4, 10)]
    assert torch.cat([y for _, y in seen]).bincount().tolist() == [4] * 10
    offsets = set()
    for x, y in seen:
        assert x.shape == (10, 1, 28, 28) and x.dtype == torch.float32
        for image, label in zip(pixels(x), y.tolist(), strict=True):
            bright = (image[0] == 255).nonzero()
            assert len(bright) == 9, "a shift lost ink"
            row, column = corner(label)
            offsets.add((int(bright[0, 0]) - row, int(bright[0, 1]) - column))
    rows, columns = zip(*offsets, strict=True)
    assert (min(rows), max(rows)) == (-SHIFT, SHIFT) and (min(columns), max(columns)) == (-SHIFT, SHIFT)


def test_batches_reshuffle_when_used_up_and_repeat_with_the_seed(mnist: Mnist) -> None:
    first = [x for x, _ in Digits(mnist, CPU, seed=1).batches(7, 16)]
    again = [x for x, _ in Digits(mnist, CPU, seed=1).batches(7, 16)]
    other = [x for x, _ in Digits(mnist, CPU, seed=2).batches(7, 16)]
    assert len(first) == 7 and all(x.shape[0] == 16 for x in first)
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))


def test_test_digits_and_centred_digits_are_not_shifted(mnist: Mnist) -> None:
    digits = Digits(mnist, CPU)
    assert torch.equal(pixels(digits.test_images)[:, 0], torch.from_numpy(mnist.test_images).float())
    assert torch.equal(pixels(digits.centred(8))[:, 0], torch.from_numpy(mnist.train_images[:8]).float())
    assert len(digits.centred(1000)) == 40


def test_training_lowers_the_loss_and_raises_the_accuracy(mnist: Mnist) -> None:
    digits, model, losses = Digits(mnist, CPU), small_net(), []
    before = accuracy(model.eval(), digits)
    train(
        model,
        digits,
        Schedule(40 * 30, 0.05, batch_size=20),
        lambda step, steps, loss: losses.append((step, steps, loss)),
    )
    assert [(step, steps) for step, steps, _ in losses] == [(i + 1, 60) for i in range(60)]
    assert np.mean([loss for _, _, loss in losses[-5:]]) < 0.2 * losses[0][2]
    assert accuracy(model, digits) >= max(0.9, before)
    assert not model.training


def test_training_is_repeatable(mnist: Mnist) -> None:
    results = []
    for _ in range(2):
        model = small_net()
        train(model, Digits(mnist, CPU), Schedule(200, 0.05, batch_size=20))
        results.append(model.state_dict())
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])


def test_training_leaves_settled_statistics_and_their_momentum(mnist: Mnist) -> None:
    digits, model = Digits(mnist, CPU), small_net()
    train(model, digits, Schedule(40, 0.5, batch_size=20))  # two steps: lagging averages would be far off
    norm = model[1]
    assert norm.momentum == 0.1
    with torch.no_grad():
        y = model[0](torch.cat([x for x, _ in digits.batches(20, 40)]))
    torch.testing.assert_close(norm.running_mean, y.mean((0, 2, 3)), rtol=0.1, atol=0.02)
    torch.testing.assert_close(norm.running_var, y.var((0, 2, 3)), rtol=0.1, atol=0.02)


def test_accuracy_counts_right_answers(mnist: Mnist) -> None:
    class Says(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.eye(10)[3].expand(len(x), 10)

    assert accuracy(Says(), Digits(mnist, CPU)) == pytest.approx(0.1)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("quick", [True, False])
def test_recipes_end_at_ninety_percent(model: str, quick: bool) -> None:
    chosen = recipe(model, quick)
    assert chosen.amounts[-1] == 0.9
    assert list(chosen.amounts) == sorted(set(chosen.amounts))
    assert type(chosen.build()).__name__ == "ResNet"


def test_unknown_model() -> None:
    with pytest.raises(ValueError, match="demo: model is 'vgg', accepted are resnet18, resnet50"):
        recipe("vgg", False)
