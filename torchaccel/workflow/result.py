"""Result: what `optimize` returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from torchaccel.report import Report


@dataclass(frozen=True)
class Result:
    """An optimized model and the report that proves it.

    Attributes:
        model: takes the same inputs as the model that was given; the best dense form of it where nothing won.
        report: `.summary()`, `.to_json(path)`, `.to_html(path)`, `.speedup`, `.layers`.
        passed: whether both gates passed, so that `model` is the optimized one.
    """

    model: nn.Module
    report: Report
    passed: bool
