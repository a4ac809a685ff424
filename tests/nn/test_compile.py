"""Layers under autograd, torch.compile and torch.export."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.nn.cases import ALL, CONV, make


@pytest.mark.parametrize("kind", ALL)
def test_only_a_backward_pass_raises(kind: str) -> None:
    case = make(kind)
    expected = case.layer(case.x)
    assert not expected.requires_grad
    x = case.x.clone().requires_grad_()
    y = case.layer(x)
    assert torch.equal(y, expected)
    with torch.no_grad():
        assert not case.layer(x).requires_grad
    with pytest.raises(RuntimeError, match="inference-only: train the float model"):
        y.sum().backward()


def test_a_residual_that_needs_a_gradient_raises_as_well() -> None:
    case = make("conv static u8")
    residual = torch.zeros_like(case.layer(case.x)).requires_grad_()
    with pytest.raises(RuntimeError, match="inference-only"):
        case.layer(case.x, residual).sum().backward()


@pytest.mark.parametrize(
    "kind", ["linear static u8", "linear dynamic", "conv static u8", "conv dynamic", "sparse int8 1x4"]
)
def test_compile_without_graph_breaks(kind: str) -> None:
    case = make(kind)
    # The backend that runs the traced graph as it is: what is tested here is the tracing.
    compiled = torch.compile(case.layer, fullgraph=True, backend="aot_eager")
    expected = case.layer(case.x)
    assert torch.equal(compiled(case.x), expected)
    y = compiled(case.x.clone().requires_grad_())
    assert torch.equal(y, expected)
    with pytest.raises(RuntimeError, match="inference-only"):
        y.sum().backward()


@pytest.mark.parametrize("kind", ALL)
def test_export(kind: str) -> None:
    case = make(kind)
    # Within a model: torch.export miscounts the None buffers of a module that it exports by itself.
    exported = torch.export.export(nn.Sequential(case.layer), (case.x,))
    assert torch.equal(exported.module()(case.x), case.layer(case.x))


@pytest.mark.parametrize("kind", CONV)
def test_export_with_any_batch_size(kind: str) -> None:
    case = make(kind)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(nn.Sequential(case.layer), (case.x,), dynamic_shapes=({0: batch},))
    x = torch.randn(5, *case.x.shape[1:])
    assert torch.equal(exported.module()(x), case.layer(x))
