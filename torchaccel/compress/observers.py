"""Observers: what is remembered of a layer's inputs during calibration, and the range that follows from it."""

from __future__ import annotations

import torch
from torch import Tensor

from torchaccel.nn import InputRange

_LEVELS = 255
_FRACTIONS = [percent / 100 for percent in range(100, 9, -1)]
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
    _SAMPLE = 1 << 18

    def __init__(self) -> None:
        super().__init__()
        self.counts: Tensor | None = None

    def _centres(self, low: float, high: float) -> Tensor:
        width = (high - low) / self._BINS
        return low + width * (torch.arange(self._BINS, dtype=torch.float64) + 0.5)

    def _count(self, x: Tensor, low: float, high: float) -> None:
        if low == high:
            return
        # A quarter of a million values per batch shape the histogram as well as all do. An odd step, since an even one
        # could meet the same column of every row.
        step = x.numel() // self._SAMPLE | 1
        sample = x.flatten()[::step].to(torch.float32)
        new = torch.histc(sample, self._BINS, low, high).to("cpu", torch.float64) * (x.numel() / sample.numel())
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
        # min() takes the first of equals: where errors tie, the wider range is safer on data that was not seen.
        low, high = self.low, self.high
        high = min((high * f for f in _FRACTIONS), key=lambda end: _squared_error(centres, counts, range_of(low, end)))
        low = min((low * f for f in _FRACTIONS), key=lambda end: _squared_error(centres, counts, range_of(end, high)))
        return range_of(low, high)


def _squared_error(centres: Tensor, counts: Tensor, given: InputRange) -> float:
    """The squared error of quantizing a histogram; small tensors, so that nothing waits for threads."""
    q = torch.round(centres / given.scale + given.zero_point).clamp_(0, _LEVELS)
    return float((((q - given.zero_point) * given.scale - centres) ** 2 * counts).sum())


OBSERVERS = {"mse": MseObserver, "minmax": MinMaxObserver}
