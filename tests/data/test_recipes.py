"""Recipes that fit, and the errors of those that do not."""

from __future__ import annotations

import pytest
import torch

from torchaccel.data import CenterCrop, HorizontalFlip, Normalize, RandomCrop, RandomResizedCrop, Resize
from torchaccel.data.recipes import Step, compile_recipe


def test_a_recipe_fixes_the_size() -> None:
    assert compile_recipe([RandomResizedCrop((3, 5))], 3, None).shape == (3, 3, 5)
    assert compile_recipe([Resize(9), CenterCrop(7)], 3, None, channels_last=True).shape == (7, 7, 3)
    assert compile_recipe([], 1, (28, 30)).shape == (1, 28, 30)


@pytest.mark.parametrize(
    "steps, message",
    [
        ([], "does not fix the size"),
        ([Resize(8)], "does not fix the size"),
        ([CenterCrop(8), Resize(8)], "accepted are, in this order"),
        ([Normalize(), CenterCrop(8)], "accepted are, in this order"),
        ([RandomResizedCrop(8), Resize(8)], "at most once"),
        ([HorizontalFlip(), HorizontalFlip()], "at most once"),
        ([CenterCrop(0)], "size is 0"),
        ([CenterCrop((1, 2, 3))], "size is"),  # type: ignore[arg-type]
        ([RandomResizedCrop(8, scale=(0.5, 0.1))], "scale is"),
        ([RandomResizedCrop(8, scale=(0.5, 1.5))], "within 0..1"),
        ([RandomResizedCrop(8, ratio=(0.0, 1.0))], "ratio is"),
        ([RandomCrop(8, padding=8)], "padding is 8, accepted is 0..7"),
        ([CenterCrop(8), HorizontalFlip(1.5)], "p is 1.5"),
        ([CenterCrop(8), Normalize((0.5, 0.5))], "mean has 2 values"),
        ([CenterCrop(8), Normalize(0.5, 0.0)], "std above 0"),
        ([CenterCrop(8), Normalize(dtype=torch.float64)], "accepted are torch.float32 and torch.float16"),
        (["crop"], "recipe holds 'crop'"),
    ],
)
def test_what_does_not_fit_is_refused(steps: list[Step], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compile_recipe(steps, 3, None)
