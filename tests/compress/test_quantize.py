"""quantize_: what is swapped, what is left alone and why, and that the model still computes what it did."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.models import SmallNet, settled
from tests.nn.cases import error
from torchaccel.compress import Int8Dynamic, Int8Static, Int8WeightOnly, Sparsity, int8_module, quantize_, sparsify_
from torchaccel.nn import InputRange, Int8Conv2d, Int8Linear, Int8LinearWeightOnly, SparseInt8Conv2d

CONFIGS = (Int8Static(), Int8Static(observer="minmax"), Int8Dynamic(), Int8WeightOnly())


def images(n: int = 16) -> Tensor:
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_network_still_computes_what_it_did(config: object) -> None:
    model = settled(SmallNet())
    expected = model(images())
    done = quantize_(model, config, [images()])
    assert error(model(images()), expected) < 0.04
    assert isinstance(model.head, Int8LinearWeightOnly if isinstance(config, Int8WeightOnly) else Int8Linear)
    if isinstance(config, Int8WeightOnly):
        assert set(done.swapped) == {"head"}
        assert set(done.kept.values()) == {"weight-only int8 serves linear layers"}
    else:
        assert not done.kept
        assert done.swapped["block2.shortcut"] == "Int8Conv2d"
        assert not [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


@pytest.mark.parametrize("config", [Int8Static(), Int8Dynamic()], ids=str)
def test_compile_export_copy_and_state(config: object) -> None:
    model = settled(SmallNet())
    empty = copy.deepcopy(model)
    quantize_(model, config, [images()])
    x = images(2)
    with torch.no_grad():
        expected = model(x)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)
        exported = torch.export.export(model, (x,))
        torch.testing.assert_close(exported.module()(x), expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(copy.deepcopy(model)(x), expected)
        quantize_(empty, config, [torch.ones(1, 3, 16, 16)])
        assert not torch.equal(empty(x), expected) or isinstance(config, Int8Dynamic)
        empty.load_state_dict(model.state_dict())
        assert torch.equal(empty(x), expected)


def test_masked_convolutions_become_sparse() -> None:
    model = settled(SmallNet())
    sparsify_(model, Sparsity("1x4", 0.5))
    expected = model(images())
    done = quantize_(model, Int8Static(), [images()])
    assert isinstance(model.block1.conv1, SparseInt8Conv2d)
    assert model.block1.conv1.sparsity >= 0.5
    assert isinstance(model.stem[0], Int8Conv2d), "the first layer has no mask"
    assert done.swapped["block2.shortcut"] == "SparseInt8Conv2d"
    assert error(model(images()), expected) < 0.04


class Encoder(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=batch_first, dropout=0.0)
        self.inside = nn.Linear(16, 32)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=batch_first)
        self.outside = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(self.inside(x))
        return self.outside(self.attention(x, x, x)[0])


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_attention_keeps_what_it_reads_by_itself(batch_first: bool, config: object) -> None:
    torch.manual_seed(0)
    model, x = Encoder(batch_first).eval(), torch.randn(3, 7, 16)
    with torch.no_grad():
        expected = model(x)
        done = quantize_(model, config, [x])
        assert error(model(x), expected) < 0.04
    assert set(done.swapped) == {"inside", "outside"}
    assert done.kept["attention.out_proj"] == "MultiheadAttention reads its weight by itself"
    assert "TransformerEncoderLayer" in done.kept["encoder.layers.1.linear2"]


def test_shared_modules_swap_once_and_stay_shared() -> None:
    shared = nn.Linear(8, 8)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    done = quantize_(model, Int8Dynamic())
    assert isinstance(model[0], Int8Linear)
    assert model[0] is model[2]
    assert set(done.swapped) == {"0"}


def test_a_parameter_shared_with_an_embedding_is_copied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(20, 16), nn.Linear(16, 20, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embedding(x))

    torch.manual_seed(0)
    model, x = Tied(), torch.arange(20)
    expected = model(x)
    quantize_(model, Int8WeightOnly())
    assert error(model(x), expected) < 0.01
    assert model.embedding.weight.dtype == torch.float32


class OwnForward(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def test_what_is_left_alone_has_its_reason() -> None:
    torch.manual_seed(0)
    hooked = nn.Linear(8, 8)
    hooked.register_forward_hook(lambda m, args, y: y + 1)
    model = nn.Sequential(
        nn.Linear(8, 8), hooked, OwnForward(8, 8), nn.Linear(8, 8), nn.Unflatten(1, (8, 1, 1)),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"), nn.ConvTranspose2d(8, 8, 2), nn.Flatten(),
    )  # fmt: skip
    x = torch.randn(4, 8)
    expected = model(x)
    done = quantize_(model, Int8Static(), [x], filter_fn=lambda m, name: name != "3")
    assert set(done.swapped) == {"0"}
    assert done.kept["1"] == "it has forward hooks, which a swap would drop"
    assert done.kept["2"] == "OwnForward has a forward of its own"
    assert done.kept["3"] == "filter_fn left it out"
    assert "padding_mode is 'circular'" in done.kept["5"]
    assert error(model(x), expected) < 0.05


def test_a_layer_that_calibration_did_not_reach() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    model.forward = lambda x: model["a"](x)
    done = quantize_(model, Int8Static(), [torch.ones(1, 4)])
    assert done.kept == {"b": "no calibration batch reached it"}


def test_the_model_itself_is_not_swapped() -> None:
    assert "wrap it" in quantize_(nn.Linear(4, 4), Int8Dynamic()).kept[""]


def test_training_mode_and_device_stay() -> None:
    model = nn.Sequential(nn.Linear(4, 4)).train()
    quantize_(model, Int8Dynamic())
    assert model[0].training


@pytest.mark.parametrize(
    ("config", "calibration", "match"),
    [
        (Int8Static(), None, "Int8Static needs calibration"),
        (Int8Static(), [], "holds no batch"),
        (Int8Static(), [torch.full((1, 3, 16, 16), float("nan"))], "layer 'stem.0': its input holds NaN"),
        (Int8Static, [images()], r"config is <class .*accepted are Int8Dynamic\(\)"),
        ("int8", None, "config is 'int8'"),
    ],
)
def test_an_error_leaves_the_model_as_it_was(config: object, calibration: object, match: str) -> None:
    model = settled(SmallNet())
    modules = list(model.modules())
    with pytest.raises(ValueError, match=match):
        quantize_(model, config, calibration)
    assert list(model.modules()) == modules
    assert not any(m._forward_pre_hooks for m in modules)


def test_an_error_half_way_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = settled(SmallNet())
    modules = list(model.modules())

    def fail(*args: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Int8Linear, "from_float", fail)  # the last layer
    with pytest.raises(MemoryError):
        quantize_(model, Int8Dynamic())
    assert list(model.modules()) == modules


@pytest.mark.parametrize(
    ("module", "config", "pattern", "match"),
    [
        (nn.Conv2d(4, 4, 1), Int8WeightOnly(), None, "weight-only int8 serves linear layers"),
        (nn.Linear(4, 4), Int8Static(), None, "no calibration batch reached it"),
        (nn.Linear(4, 4), Int8Dynamic(), "1x4", "sparse kernels serve nn.Conv2d"),
        (nn.Linear(4, 4), Int8WeightOnly(), "1x4", "sparse kernels serve nn.Conv2d"),
        (nn.Conv2d(4, 4, 1), Int8Dynamic(), "3x3", "pattern is '3x3', accepted are unstructured, 1x4"),
        (nn.Conv2d(4, 4, 1), Int8Dynamic(), "tile", "tile needs output channels divisible by 64"),
        (nn.Linear(4, 4).double(), Int8Dynamic(), None, r"weight is torch.float64"),
        (nn.LazyLinear(4), Int8Dynamic(), None, "run the model once"),
        (nn.ReLU(), Int8Dynamic(), None, "ReLU has no int8 counterpart"),
    ],
)
def test_int8_module_says_why_not(module: nn.Module, config: object, pattern: str | None, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        int8_module(module, config, None, pattern)


def test_what_the_kernel_of_the_device_does_not_take_stays_float(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Int8Conv2d, "limits", lambda self, device: f"{self.groups} groups" if self.groups > 1 else None)
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, groups=2))
    done = quantize_(model, Int8Dynamic())
    assert done.swapped == {"0": "Int8Conv2d"} and done.kept == {"1": "2 groups"}
    assert type(model[1]) is nn.Conv2d


def test_int8_module_uses_the_range_for_static_alone() -> None:
    given = InputRange(0.1, 3)
    assert int8_module(nn.Linear(4, 4), Int8Static(), given).input_range().zero_point == 3
    assert int8_module(nn.Linear(4, 4), Int8Dynamic(), given).input_range() is None


def test_transposed_convolutions_whose_windows_do_not_overlap_are_swapped() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(3, 8, 2, 2), nn.ConvTranspose2d(8, 4, 3, 2)).eval()
    x = torch.randn(2, 3, 9, 7)
    expected = model(x).detach()
    done = quantize_(model, Int8Static(), calibration=[x])
    assert done.swapped == {"0": "Int8ConvTranspose2d"}
    assert "stride (2, 2), accepted are equal ones" in done.kept["1"]
    with torch.no_grad():
        assert (model(x) - expected).norm() < 0.05 * expected.norm()
