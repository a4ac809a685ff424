"""Models that run a batch in slices."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import torchaccel as ta
from torchaccel.graph.trace import trace
from torchaccel.nn import SparseConv2d
from torchaccel.workflow import sliced as module
from torchaccel.workflow.running import inner
from torchaccel.workflow.sliced import Sliced, can_slice, sliced


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 8, 1)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.b(self.a(x).relu()) + x).flatten(1))


class MeanOfBatch(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - x.mean()


class Pair(Net):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x), x


class FlatBatch(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flatten()


class Softmaxed(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(0)


def test_slices_give_what_the_batch_gives() -> None:
    model, x = Net().eval(), torch.randn(7, 8, 9, 9)
    seen = []
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.append((*args, *kwargs.values())[0].shape[0]),
                                    with_kwargs=True)  # fmt: skip
    with torch.no_grad():
        for call in (lambda m: m(x), lambda m: m(x=x)):
            torch.testing.assert_close(call(Sliced(model, 3)), call(model))
    assert seen == [3, 3, 1, 7] * 2


def test_gradients_and_training_take_the_whole_batch() -> None:
    model = nn.BatchNorm2d(8)
    x = torch.randn(6, 8, 4, 4)
    assert torch.equal(Sliced(model, 2).train()(x), nn.BatchNorm2d(8)(x))
    y = Sliced(Net().eval(), 2)(x.requires_grad_())
    y.sum().backward()
    assert x.grad is not None


def test_a_size_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="Sliced: size is 0, accepted is at least 1"):
        Sliced(Net(), 0)


@pytest.mark.parametrize("kind", [MeanOfBatch, Pair, FlatBatch, Softmaxed])
def test_images_that_meet_are_not_sliced(kind: type[nn.Module]) -> None:
    assert can_slice(trace(Net().eval()))
    assert not can_slice(trace(kind().eval())) and not can_slice(Net())


@pytest.fixture
def pruned() -> nn.Module:
    model = Net().eval()
    ta.sparsify_(model, ta.Sparsity("unstructured", 0.9), filter_fn=lambda layer, name: name in ("a", "b"))
    for name in ("a", "b"):
        setattr(model, name, SparseConv2d.from_float(model.get_submodule(name), "unstructured"))
    return trace(model)


def test_the_fastest_slices_are_taken(pruned: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(6, 8, 9, 9)
    monkeypatch.setattr(module.measure, "seconds", lambda step: 1.0)
    for times, size in (([10, 9, 8, 9], 2), ([10, 10, 9.9, 9.8], None), ([1, 2, 3, 4], None)):
        monkeypatch.setattr(module.measure, "interleaved_ms", lambda steps, *args, t=times, **kwargs: t[: len(steps)])
        made = sliced(pruned, (x,))
        assert getattr(made, "size", None) == size and inner(made) is pruned
    monkeypatch.setattr(module.measure, "interleaved_ms", lambda steps, *args, **kwargs: range(9, 9 - len(steps), -1))
    dense = trace(Net().eval())
    assert sliced(dense, (x,)) is dense
    monkeypatch.setattr(module.measure, "seconds", lambda step: 0.001)
    assert sliced(pruned, (x,)) is pruned


def test_slices_are_saved(tmp_path: Path) -> None:
    model, x = Net().eval(), torch.randn(4, 8, 9, 9)
    fast = Sliced(ta.accelerate(model, (x,)), 2)
    fast.model = inner(fast.model)
    ta.save(fast, tmp_path / "model.safetensors")
    loaded = ta.load(tmp_path / "model.safetensors", Net)
    assert isinstance(loaded, Sliced) and loaded.size == 2
    with torch.no_grad():
        assert torch.equal(loaded(x), fast(x))
