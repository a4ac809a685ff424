"""The matrices of Winograd's and Toom-Cook's convolution: y = A ((G w) * (B x)), as polynomials are multiplied.

Source: Winograd, "Arithmetic Complexity of Computations", 1980; Lavin and Gray, "Fast Algorithms for Convolutional
Neural Networks", 2015.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

OUTPUTS = 4
"""Of a strip, which are made together."""
_ROOTS = {3: (0.75, 1.5), 4: (0.375, 0.875, 1.75)}
"""By taps: of the eighths below 2, those with the smallest errors."""


def matrices(taps: int) -> tuple[Tensor, Tensor, Tensor]:
    """A [4, n], B [n, n] and G [n, taps] in float64 for n = taps + 3 points, those of csrc/cpu/chain_winograd.inl.

    The points are 0 where their number is even, each root and its opposite, and infinity.
    """
    n = taps + OUTPUTS - 1
    points = torch.tensor([0.0] * (1 - n % 2) + [sign * root for root in _ROOTS[taps] for sign in (1, -1)]).double()
    a, b, g = torch.zeros(OUTPUTS, n).double(), torch.zeros(n, n).double(), torch.zeros(n, taps).double()
    a[:, :-1] = points ** torch.arange(OUTPUTS).unsqueeze(1)
    a[-1, -1] = g[-1, -1] = 1
    for i in range(n):
        others = torch.cat([points[:i], points[i + 1 :]])
        polynomial = torch.ones(1).double()
        for point in others:  # times (t - point)
            polynomial = F.pad(polynomial, (1, 0)) - point * F.pad(polynomial, (0, 1))
        b[i, : len(polynomial)] = polynomial
        if i < n - 1:
            g[i] = points[i] ** torch.arange(taps) / (points[i] - others).prod()
    return a, b, g
