"""Calibration: ranges that fit what was seen, a model left as it was, and errors that name the layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from torchaccel.compress import Int8Static, calibrate, residual_of
from torchaccel.compress.observers import MinMaxObserver, MseObserver
from torchaccel.nn import InputRange
from torchaccel.nn.dense import DenseConv2d

MINMAX = Int8Static(observer="minmax")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4))


def squared_error(x: Tensor, given: InputRange) -> float:
    q = (torch.round(x / given.scale) + given.zero_point).clamp(0, 255)
    return ((q - given.zero_point) * given.scale - x).square().mean().item()


def test_minmax_spans_what_was_seen() -> None:
    batches = [torch.linspace(-1, 2, 8).view(1, 8), torch.linspace(-3, 1, 8).view(1, 8)]
    ranges = calibrate(network(), ["0", "3"], batches, MINMAX)
    assert ranges["0"].scale == pytest.approx(5 / 255)
    assert ranges["0"].zero_point == round(3 / 5 * 255)
    assert ranges["3"].zero_point == 0, "nothing negative after ReLU"
    with torch.no_grad():
        high = max(network().eval()[:3](b).max().item() for b in batches)
    assert ranges["3"].scale == pytest.approx(high / 255)


class _Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
        return self.a(x) + self.b(y) * scale


def test_a_model_of_several_inputs_takes_the_first_items() -> None:
    labels = torch.zeros(1)
    ranges = calibrate(_Sum(), ["a", "b"], [(torch.full((1, 8), 5.1), torch.full((1, 8), 2.55), labels)], MINMAX)
    assert ranges["a"].scale == pytest.approx(0.02) and ranges["b"].scale == pytest.approx(0.01)
    with pytest.raises(ValueError, match="first 2 items are the input tensors"):
        calibrate(_Sum(), ["a"], [torch.ones(1, 8)])


def test_no_more_batches_than_asked_for() -> None:
    batches = iter([torch.ones(1, 8), torch.full((1, 8), 5.0), torch.full((1, 8), 9.0)])
    ranges = calibrate(network(), ["0"], batches, Int8Static(observer="minmax", batches=2))
    assert ranges["0"].scale == pytest.approx(5 / 255)
    assert next(batches)[0, 0] == 9, "the third batch is not drawn"


def test_positive_and_negative_inputs_include_zero() -> None:
    """Padding is zero, so zero must be exact."""
    assert calibrate(network(), ["0"], [torch.full((1, 8), 5.0)], MINMAX)["0"] == InputRange(5 / 255, 0)
    below = calibrate(network(), ["0"], [torch.full((1, 8), -5.0)], MINMAX)["0"]
    assert (below.scale, below.zero_point) == (pytest.approx(5 / 255), 255)


@pytest.mark.parametrize("observer", ["mse", "minmax"])
def test_inputs_of_zeros(observer: str) -> None:
    ranges = calibrate(network(), ["0"], [torch.zeros(2, 8)], Int8Static(observer=observer))
    assert ranges["0"] == InputRange(1.0, 0)


@pytest.mark.parametrize("shift", [0.0, 1.5, -4.0])
def test_mse_clips_outliers_where_that_pays(shift: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(100_000) + shift
    x[0], x[1] = 60.0, -40.0
    mse, minmax = MseObserver(), MinMaxObserver()
    for part in x.flip(0).split(20_000):
        mse.observe(part)
        minmax.observe(part)
    assert squared_error(x[2:], mse.range()) < 0.7 * squared_error(x[2:], minmax.range())
    assert squared_error(x, mse.range()) < squared_error(x, minmax.range())


def test_mse_keeps_a_range_that_is_used() -> None:
    x = torch.rand(100_000)
    observer = MseObserver()
    observer.observe(x)
    assert observer.range().scale == pytest.approx(1 / 255, rel=0.02)


def test_mse_counts_survive_a_growing_range() -> None:
    """Batch by batch, each wider than the last, ends near what one pass over all finds."""
    torch.manual_seed(1)
    parts = [torch.randn(10_000).relu() * s for s in (0.1, 0.5, 1.0, 3.0)]
    grown, whole = MseObserver(), MseObserver()
    for part in parts:
        grown.observe(part)
    whole.observe(torch.cat(parts))
    assert grown.counts.sum() == whole.counts.sum() == 40_000
    assert grown.range().scale == pytest.approx(whole.range().scale, rel=0.05)


def test_mse_of_a_large_input_is_that_of_a_sample() -> None:
    """A large batch and a small one count by their sizes."""
    torch.manual_seed(2)
    large, small = torch.rand(4, 64, 80, 80) * 0.5, torch.rand(1000)
    observer = MseObserver()
    observer.observe(large)
    observer.observe(small)
    assert observer.counts.sum().item() == pytest.approx(large.numel() + 1000)
    observer.observe(torch.tensor([3.0]))
    assert observer.range().scale == pytest.approx(1 / 255, rel=0.05), (
        "one value in a million is clipped, a thousand are not"
    )


def test_model_comes_back_as_it_was() -> None:
    model = network().train()
    model[2].eval()
    calibrate(model, ["0", "3"], [torch.randn(4, 8).requires_grad_()])
    assert [m.training for m in model] == [True, True, False, True]
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_batches_may_be_tuples_or_a_loader() -> None:
    x = torch.randn(8, 8)
    loader = DataLoader(TensorDataset(x, torch.zeros(8)), batch_size=4)
    expected = calibrate(network(), ["3"], [x], MINMAX)
    assert calibrate(network(), ["3"], loader, MINMAX) == expected
    assert calibrate(network(), ["3"], [(x, 1, "label")], MINMAX) == expected


def test_layers_that_no_batch_reaches_are_left_out() -> None:
    class Side(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    assert set(calibrate(Side(), ["used", "idle"], [torch.ones(1, 8)])) == {"used"}


@pytest.mark.parametrize("observer", ["mse", "minmax"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite(observer: str, value: float) -> None:
    model = network()
    with torch.no_grad():
        model[0].bias[3] = value
    with pytest.raises(ValueError, match="layer '3': its input holds NaN or an infinity"):
        calibrate(model, ["0", "3"], [torch.ones(2, 8)], Int8Static(observer=observer))
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_bad_batches() -> None:
    with pytest.raises(ValueError, match="holds no batch"):
        calibrate(network(), ["0"], [])
    with pytest.raises(ValueError, match=r"a batch is dict .*accepted is a tensor or a tuple"):
        calibrate(network(), ["0"], [{"x": torch.ones(1, 8)}])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"observer": "entropy"}, "observer is 'entropy', accepted are mse, minmax"),
        ({"batches": 0}, "batches is 0, accepted is None or at least 1"),
    ],
)
def test_config_is_validated(arguments: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Int8Static(**arguments)


def test_a_second_input_has_its_own_range() -> None:
    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = DenseConv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x, residual=x * -2.0) if x.shape[0] > 1 else self.layer(input=x, residual=x)

    ranges = calibrate(Adds(), ["layer"], [torch.ones(2, 4, 1, 1), torch.full((1, 4, 1, 1), 0.5)], MINMAX)
    assert ranges.keys() == {"layer", residual_of("layer")}
    assert ranges["layer"] == InputRange(1 / 255, 0)
    low, high = -2.0, 0.5
    assert ranges[residual_of("layer")].scale == pytest.approx((high - low) / 255)
