"""Observers: what is remembered of a layer's inputs during calibration, and the range that follows from it."""

from __future__ import annotations

import torch
from torch import Tensor

from torchaccel.nn import InputRange

_LEVELS = 255
_TINY = torch.finfo(torch.float32).tiny


def range_of(low: float, high: float) -> InputRange:
    """uint8 over low <= 0 <= high: zero point 0 where nothing is negative, else affine.

    Zero is always exact, since padding and ReLU produce it. A range of zeros gets scale 1.
    """
    if low == high:
        return InputRange(1.0, 0, torch.uint8)
    # Divided first: the span of two finite floats may be infinite.
    scale = max(high / _LEVELS - low / _LEVELS, _TINY)
    return InputRange(scale, min(max(round(-low / scale), 0), _LEVELS), torch.uint8)


class MinMaxObserver:
    """Remembers the smallest and the largest value, with zero among them."""

    def __init__(self) -> None:
        self.low = 0.0
        self.high = 0.0

    def observe(self, x: Tensor) -> None:
        """Take in a float tensor of any shape; raises ValueError where it holds NaN or an infinity."""
        if x.numel() == 0:
            return
        low, high = (v.item() for v in torch.aminmax(x))
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            raise ValueError("its input holds NaN or an infinity")
        self._count(x, min(self.low, low), max(self.high, high))
        self.low, self.high = min(self.low, low), max(self.high, high)

    def _count(self, x: Tensor, low: float, high: float) -> None:
        """Nothing more is kept."""

    def range(self) -> InputRange:
        return range_of(self.low, self.high)


class MseObserver(MinMaxObserver):
    """Remembers a histogram and picks the range with the smallest mean squared error of clipping and rounding.

    Each end of the range is drawn in, one after the other, over fractions of what was seen. The histogram spans what
    was seen so far; where that grows, old counts move to the bin that holds their centre.
    """

    _BINS = 2048
    _FRACTIONS = torch.linspace(0.1, 1.0, 91)

    def __init__(self) -> None:
        super().__init__()
        self.counts: Tensor | None = None

    def _centres(self, low: float, high: float) -> Tensor:
        width = (high - low) / self._BINS
        return low + width * (torch.arange(self._BINS, dtype=torch.float64) + 0.5)

    def _count(self, x: Tensor, low: float, high: float) -> None:
        if low == high:
            return
        new = torch.histc(x.to(torch.float32), self._BINS, low, high).to("cpu", torch.float64)
        if self.counts is not None:
            if (low, high) == (self.low, self.high):
                new += self.counts
            else:
                index = ((self._centres(self.low, self.high) - low) / (high - low) * self._BINS).long()
                new.index_add_(0, index.clamp(0, self._BINS - 1), self.counts)
        self.counts = new

    def range(self) -> InputRange:
        if self.counts is None:
            return super().range()
        centres = self._centres(self.low, self.high)
        keep = self.counts > 0
        centres, counts = centres[keep], self.counts[keep]
        low, high = self.low, self.high
        high = high * self._best(centres, counts, torch.full_like(self._FRACTIONS, low), high * self._FRACTIONS)
        low = low * self._best(centres, counts, low * self._FRACTIONS, torch.full_like(self._FRACTIONS, high))
        return range_of(low, high)

    def _best(self, centres: Tensor, counts: Tensor, lows: Tensor, highs: Tensor) -> float:
        """The fraction whose range (lows[i], highs[i]) has the smallest squared error over the histogram."""
        lows, highs = lows.double().view(-1, 1), highs.double().view(-1, 1)
        scale = (highs / _LEVELS - lows / _LEVELS).clamp(min=_TINY)
        zero_point = torch.round(-lows / scale)
        restored = (torch.round(centres / scale + zero_point).clamp(0, _LEVELS) - zero_point) * scale
        error = ((restored - centres) ** 2 * counts).sum(1)
        # From the right: where errors tie, the wider range is safer on data that was not seen.
        return float(self._FRACTIONS.flip(0)[error.flip(0).argmin()])


OBSERVERS = {"mse": MseObserver, "minmax": MinMaxObserver}
