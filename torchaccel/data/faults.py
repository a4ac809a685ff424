"""Samples that could not be delivered, and what loaders raise."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One sample that failed: its index in the source, its name (a path, where it has one), why, in which epoch, and
    the index of the sample that stood in for it, if one did."""

    index: int
    name: str
    reason: str
    epoch: int
    substitute: int | None = None

    def __str__(self) -> str:
        stand_in = "" if self.substitute is None else f"; sample {self.substitute} stands in"
        return f"sample {self.index} ({self.name}): {self.reason}{stand_in}"


class SampleError(RuntimeError):
    """A sample failed under on_error="raise", or all its substitutes did too; `fault` says which and why."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(f"Loader: {fault}")
        self.fault = fault
