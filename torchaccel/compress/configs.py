"""How `quantize_` quantizes: frozen settings, validated when made."""

from __future__ import annotations

from dataclasses import dataclass

OBSERVERS = ("mse", "minmax")


@dataclass(frozen=True)
class Int8Dynamic:
    """int8 weights; activations quantized at each call, with a scale per row (linear) or per image (convolution)."""


@dataclass(frozen=True)
class Int8WeightOnly:
    """int8 weights and float activations, for linear layers on few rows; convolutions stay float."""


@dataclass(frozen=True)
class Int8Static:
    """int8 weights; activations quantized with one scale per layer, found on calibration batches.

    Args:
        observer: "mse" clips outliers where that lowers the mean squared error, "minmax" spans all that was seen.
        batches: how many calibration batches to use at most; None uses all.

    Raises:
        ValueError: an unknown observer or fewer than one batch.
    """

    observer: str = "mse"
    batches: int | None = 32

    def __post_init__(self) -> None:
        if self.observer not in OBSERVERS:
            raise ValueError(f"Int8Static: observer is {self.observer!r}, accepted are {', '.join(OBSERVERS)}")
        if self.batches is not None and self.batches < 1:
            raise ValueError(f"Int8Static: batches is {self.batches}, accepted is None or at least 1")


Int8Config = Int8Dynamic | Int8WeightOnly | Int8Static


def check_config(op: str, config: object) -> None:
    """Raise ValueError unless `config` is one of the int8 settings (an instance, not the class)."""
    if not isinstance(config, Int8Config):
        raise ValueError(f"{op}: config is {config!r}, accepted are Int8Dynamic(), Int8WeightOnly() and Int8Static()")
