"""How long and how fast the demo trains each model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torchaccel.demo.resnet import ResNet, resnet18, resnet50
from torchaccel.demo.train import Schedule

PATTERN = "1x4"


@dataclass(frozen=True)
class Recipe:
    """What the demo trains, and how.

    Attributes:
        build: makes the untrained model.
        dense: the training before pruning.
        pruning: per step the share of weights that is pruned, and the fine-tuning that follows.
    """

    build: Callable[[], ResNet]
    dense: Schedule
    pruning: tuple[tuple[float, Schedule], ...]

    @property
    def amounts(self) -> tuple[float, ...]:
        return tuple(amount for amount, _ in self.pruning)


# The last step prunes most of what the step before had left, so it gets the longest fine-tuning.
_RECIPES = {
    ("resnet18", True): Recipe(
        resnet18,
        dense=Schedule(images=9_000, learning_rate=0.1),
        pruning=((0.7, Schedule(4_500, 0.1)), (0.9, Schedule(8_500, 0.1))),
    ),
    ("resnet18", False): Recipe(
        resnet18,
        dense=Schedule(images=45_000, learning_rate=0.1),
        pruning=(
            (0.5, Schedule(4_000, 0.05)),
            (0.7, Schedule(4_000, 0.05)),
            (0.8, Schedule(6_000, 0.05)),
            (0.9, Schedule(33_000, 0.1)),
        ),
    ),
    ("resnet50", True): Recipe(
        resnet50,
        dense=Schedule(images=10_000, learning_rate=0.1),
        pruning=((0.7, Schedule(6_000, 0.1)), (0.9, Schedule(7_000, 0.1))),
    ),
    ("resnet50", False): Recipe(
        resnet50,
        dense=Schedule(images=150_000, learning_rate=0.1),
        pruning=(
            (0.5, Schedule(10_000, 0.05)),
            (0.7, Schedule(10_000, 0.05)),
            (0.8, Schedule(15_000, 0.05)),
            (0.9, Schedule(60_000, 0.1)),
        ),
    ),
}
MODELS = tuple(dict.fromkeys(name for name, _ in _RECIPES))


def recipe(model: str, quick: bool) -> Recipe:
    """The recipe of a model.

    Raises:
        ValueError: an unknown model.
    """
    if model not in MODELS:
        raise ValueError(f"demo: model is {model!r}, accepted are {', '.join(MODELS)}")
    return _RECIPES[model, quick]
