"""The tolerance rule for results of this package's ops, in one place; for tests here and of models built on them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_HALVES = (torch.float16, torch.bfloat16)


def assert_exact_enough(
    given: Tensor, exact: Tensor, magnitude: Tensor | None = None, depth: int = 1, pytorch: Tensor | None = None
) -> None:
    """Check a result against the same computation in float64.

    Integers are equal. float32 lies within `4 eps sqrt(depth) magnitude` plus one rounding of the result. float16 and
    bfloat16 err at most twice as much as PyTorch's own result does.

    Args:
        given: the result, of any shape.
        exact: float64 (or integers, for integers), the same shape.
        magnitude: float64, the same computation on absolute values, `|a| * |b| + |bias|`; for float32.
        depth: K, how many products make one element.
        pytorch: PyTorch's result in the dtype of `given`; for float16 and bfloat16.

    Raises:
        AssertionError: with the largest excess and where it is.

    Source: the error bound of inner products with random rounding errors, Higham and Mary 2019, "A New Approach to
    Probabilistic Rounding Error Analysis", section 2.
    """
    assert given.shape == exact.shape, f"shape {tuple(given.shape)}, expected {tuple(exact.shape)}"
    if not given.dtype.is_floating_point:
        assert torch.equal(given.long(), exact.long()), f"{int((given.long() != exact.long()).sum())} elements differ"
        return
    error = (given.double() - exact).abs()
    if given.dtype in _HALVES:
        assert pytorch is not None and pytorch.dtype == given.dtype, "half types are compared with PyTorch's own result"
        bound = 2 * (pytorch.double() - exact).abs().max() if exact.numel() else exact.new_zeros(())
    else:
        assert magnitude is not None, "float32 needs the magnitude"
        eps = torch.finfo(given.dtype).eps
        bound = 4 * eps * math.sqrt(max(depth, 1)) * magnitude + eps * exact.abs()
    excess = error - bound
    assert not (excess > 0).any() and not torch.isnan(excess).any(), (
        f"{int((excess > 0).sum())} of {excess.numel()} elements err too much; the largest error is "
        f"{float(error.max()):.3g} at flat index {int(error.argmax())}"
    )
