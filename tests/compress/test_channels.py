"""remove_channels_: what goes, that the rest computes the same, and what stays with a reason."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import torchaccel as ta
from tests.compress import networks
from tests.models import SmallMobileNet, SmallNet, settled
from torchaccel.compress import channels
from torchaccel.compress.removal import NORMS, Kept, record_of

IMAGE = (4, 3, 16, 16)
NETWORKS = {
    SmallNet: IMAGE,
    SmallMobileNet: IMAGE,
    networks.Growing: IMAGE,
    networks.SmallUNet: IMAGE,
    networks.Flattening: IMAGE,
    networks.Squeezing: IMAGE,
    networks.Gated: IMAGE,
    networks.Grouped: IMAGE,
    networks.Attending: (4, 6, 16),
}


def example(shape: tuple[int, ...], seed: int = 1) -> tuple[Tensor]:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)),)


def removed_from(model: nn.Module, x: tuple[Tensor, ...], monkeypatch: pytest.MonkeyPatch) -> dict[str, Kept]:
    """What every layer and norm of a copy keeps at 50%."""
    seen: list[dict[str, Kept]] = []
    narrow = channels.narrow_
    monkeypatch.setattr(channels, "narrow_", lambda model, kept: (seen.append(dict(kept)), narrow(model, kept)))
    ta.remove_channels_(copy.deepcopy(model), x, 0.5)
    monkeypatch.undo()
    return seen[-1]


@torch.no_grad()
def kill(model: nn.Module, kept: dict[str, Kept]) -> None:
    """Let the channels that are not kept be zero where they are made, so that nothing can depend on them."""
    for name, what in kept.items():
        if what.out is not None:
            module = model.get_submodule(name)
            transposed = isinstance(module, nn.ConvTranspose2d)
            weight = module.weight.transpose(0, 1) if transposed else module.weight
            dead = torch.ones(weight.shape[0], dtype=torch.bool)
            dead[what.out] = False
            weight[dead] = 0
            if getattr(module, "bias", None) is not None:
                module.bias[dead] = 0


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.__name__)
def test_dead_channels_go_and_nothing_changes(network: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    x, fresh = example(NETWORKS[network]), example(NETWORKS[network], 2)
    model = settled(network(), NETWORKS[network])
    kept = removed_from(model, x, monkeypatch)
    kill(model, kept)
    with torch.no_grad():
        before = model(*fresh)
    removed = ta.remove_channels_(model, x, 0.5)
    with torch.no_grad():
        assert torch.allclose(model(*fresh), before, atol=1e-5 * before.abs().max().item())
        assert model(fresh[0][:1]).shape == before[:1].shape
    layers = {name for name, module in model.named_modules() if isinstance(module, channels.LAYERS)}
    found = {name: what.out.tolist() for name, what in kept.items() if what.out is not None and name in layers}
    assert removed.remaining == found and len(found) > 0
    assert set(removed.kept) == layers - set(found)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.__name__)
def test_a_network_is_as_narrow_as_it_says(network: type[nn.Module]) -> None:
    x, model = example(NETWORKS[network]), settled(network(), NETWORKS[network])
    parameters = sum(p.numel() for p in model.parameters())
    removed = ta.remove_channels_(model, x, 0.5)
    for name, remaining in removed.remaining.items():
        width = model.get_submodule(name).weight.shape[isinstance(model.get_submodule(name), nn.ConvTranspose2d)]
        assert width == len(remaining) < removed.before[name] and width % 16 == 0
        assert len(remaining) >= removed.before[name] / 2 > len(remaining) - 16
        assert remaining == sorted(set(remaining)) and remaining[-1] < removed.before[name]
    assert removed.parameters == (parameters, sum(p.numel() for p in model.parameters()))
    assert 0 < removed.macs[1] < removed.macs[0]
    model.train()(*x).sum().backward()  # it trains on
    assert all(p.grad is None or p.grad.shape == p.shape for p in model.parameters())


def test_costs_are_counted() -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 8, 1)).eval()
    removed = ta.remove_channels_(model, example((2, 3, 10, 10)), 0.5)
    assert removed.parameters == (27 * 32 + 32 + 256 + 8, 27 * 16 + 16 + 128 + 8)
    assert removed.macs == (2 * 100 * (27 * 32 + 256), 2 * 100 * (27 * 16 + 128))


def test_the_smallest_go() -> None:
    model = settled(nn.Sequential(*networks.conv_bn(3, 48), nn.Conv2d(48, 4, 3)))
    with torch.no_grad():
        model[1].weight.copy_(torch.rand(48))
    norms = model[0].weight.square().sum((1, 2, 3)) + model[1].weight.square() + model[3].weight.square().sum((0, 2, 3))
    expected = norms.topk(32).indices.sort().values
    weights = model[0].weight[expected], model[3].weight[:, expected], model[1].running_var[expected]
    removed = ta.remove_channels_(model, example(IMAGE), 0.4)
    assert removed.remaining == {"0": expected.tolist()}
    for now, wanted in zip((model[0].weight, model[3].weight, model[1].running_var), weights, strict=True):
        assert torch.equal(now, wanted)


def test_steps_count_from_the_model_as_it_was_built() -> None:
    model, x = settled(SmallNet(64)), example(IMAGE)
    widths = {}
    whole = None
    for amount in (0.0, 0.25, 0.2, 0.5, 0.9):
        now = ta.remove_channels_(model, x, amount)
        whole = now if whole is None else whole.then(now)
        widths[amount] = model.stem[0].out_channels, model.head.in_features
    assert widths == {0.0: (64, 128), 0.25: (48, 96), 0.2: (48, 96), 0.5: (32, 64), 0.9: (16, 16)}
    first = settled(SmallNet(64)).stem[0].weight
    assert torch.equal(model.stem[0].weight, first[whole.remaining["stem.0"]])
    assert whole.before["stem.0"] == 64 and whole.parameters[0] == sum(p.numel() for p in SmallNet(64).parameters())
    assert set(whole.kept) == {"head"}
    assert record_of(model)["block2.conv1"] == {"out": [16, 128], "in": [16, 64]}


@given(amount=st.floats(0, 0.999), width=st.integers(1, 70))
@settings(max_examples=25, deadline=None)
def test_any_amount_leaves_a_multiple_of_16_or_all(amount: float, width: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 4, 1)).eval()
    ta.remove_channels_(model, example(IMAGE), amount)
    now = model[0].out_channels
    assert now == width or (now % 16 == 0 and 0 < now < width and width * (1 - amount) <= now + 1e-6)
    assert now - 16 < width * (1 - amount) or now == width


def test_filter_fn_holds_all_that_shares_channels() -> None:
    model = settled(SmallNet())
    removed = ta.remove_channels_(model, example(IMAGE), 0.5, lambda module, name: name != "block1.conv2")
    assert set(removed.remaining) == {"block1.conv1", "block2.conv1", "block2.conv2", "block2.shortcut"}
    assert removed.kept["stem.0"] == removed.kept["block1.conv2"] == "filter_fn left 'block1.conv2' out"


def test_what_a_module_is_stays() -> None:
    model = settled(SmallNet())
    model.block1.conv1.weight.requires_grad_(False)
    model.block1.eval(), model.stem.train()
    modes = [module.training for module in model.modules()]
    modules, calls = list(model.modules()), []
    model.block1.conv1.register_forward_hook(lambda module, args, output: calls.append(output.shape[1]))
    model.register_buffer("extra", torch.arange(32))
    count = model.block1.bn1.num_batches_tracked.clone()
    ta.remove_channels_(model, example(IMAGE), 0.5)
    assert [module.training for module in model.modules()] == modes
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert not model.block1.conv1.weight.requires_grad and model.block1.conv2.weight.requires_grad
    assert torch.equal(model.extra, torch.arange(32)) and torch.equal(model.block1.bn1.num_batches_tracked, count)
    assert all(m.num_features == len(m.running_mean) == len(m.weight) for m in modules if isinstance(m, NORMS))
    model(*example(IMAGE))
    assert calls[-1] == 16


MIXED = {
    "back": "the model's input",
    "first": "GroupNorm normalizes over channels",
    "second": "computes something else from the others",
    "third": "shares parameters",
    "tied1": "shares parameters",
    "tied2": "shares parameters",
    "head": "the model's output",
    "unused": "do not reach it",
}
ATTENDING = {"embed": "LayerNorm", "qkv": "depend on each other", "out": "LayerNorm", "head": "the model's output"}


@pytest.mark.parametrize(
    ("network", "shape", "reasons"),
    [
        (networks.Mixing, (2, 32, 12, 12), MIXED),
        (networks.Attending, (2, 6, 16), ATTENDING),
        (networks.Shuffling, IMAGE, {"grouped": "computes something else from the others"}),
        (lambda: nn.TransformerEncoderLayer(32, 2, 64, batch_first=True), (2, 5, 32), {"linear2": "LayerNorm"}),
    ],
)
def test_what_cannot_go_stays_with_its_reason(network, shape: tuple[int, ...], reasons: dict[str, str]) -> None:
    torch.manual_seed(0)
    model, x = network().eval(), example(shape)
    removed = ta.remove_channels_(model, x, 0.5)
    for name, reason in reasons.items():
        assert reason in removed.kept[name] and name not in removed.remaining
    assert model(*x).shape[0] == shape[0]


def test_frozen_layers_are_seen_too() -> None:
    model = networks.Attending().requires_grad_(False)
    removed = ta.remove_channels_(model, example((2, 6, 16)), 0.5)
    assert set(removed.remaining) == {"up"} and not any(p.requires_grad for p in model.parameters())


def test_a_masked_layer_stays() -> None:
    model = settled(SmallNet())
    ta.sparsify_(model, ta.Sparsity("1x4", 0.5), lambda module, name: name == "block2.conv1")
    removed = ta.remove_channels_(model, example(IMAGE), 0.5)
    assert "finalize_masks_ bakes masks in" in removed.kept["block2.conv1"]
    assert "block1.conv1" in removed.remaining


@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_a_layer_whose_weight_is_computed_stays() -> None:
    model = settled(SmallNet())
    nn.utils.weight_norm(model.block2.conv1)
    with torch.no_grad():
        model(*example(IMAGE))  # so that it can be copied
    removed = ta.remove_channels_(model, example(IMAGE), 0.5)
    assert "another tool computes it" in removed.kept["block2.conv1"]
    assert "block1.conv1" in removed.remaining


class Noisy(SmallNet):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.randn_like(x))


class Normalized(nn.Module):
    """Mixes the channels of a layer without a module that could say so."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed, self.head = nn.Linear(8, 64, bias=False), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.normalize(self.mixed(x), dim=1))


def test_random_numbers_do_not_tell_against_a_model() -> None:
    before = torch.get_rng_state()
    model = settled(Noisy())
    drawn = torch.get_rng_state()
    assert "block1.conv1" in ta.remove_channels_(model, example(IMAGE), 0.5).remaining
    assert torch.equal(torch.get_rng_state(), drawn) and not torch.equal(before, drawn)


class Detecting(nn.Module):
    """Boxes in pixels beside scores, which the model's own code normalizes over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.boxes, self.mixed, self.scores = nn.Linear(8, 4), nn.Linear(8, 64), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mixed(x)
        y = (y - y.mean(1, keepdim=True)) / y.std(1, keepdim=True)
        return torch.cat([500 + 400 * self.boxes(x), self.scores(y).sigmoid()], 1)


def test_large_outputs_hide_no_small_ones() -> None:
    torch.manual_seed(0)
    assert "computes something else" in ta.remove_channels_(Detecting(), (torch.randn(4, 8),), 0.5).kept["mixed"]


def test_a_model_that_insists_on_its_type_is_proven_in_it() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = SmallNet()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.float())

    assert "net.block1.conv1" in ta.remove_channels_(settled(Half()), example(IMAGE), 0.5).remaining


def test_inputs_of_zeros_prove_nothing() -> None:
    assert "computes something else" in ta.remove_channels_(Normalized(), (torch.zeros(4, 8),), 0.5).kept["mixed"]


def test_it_works_in_inference_mode_and_keeps_the_layout_of_weights() -> None:
    model = settled(SmallNet()).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        removed = ta.remove_channels_(model, (torch.randn(IMAGE),), 0.5)
    assert "block1.conv1" in removed.remaining and model(*example(IMAGE)).requires_grad
    assert model.block1.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert not model.block1.conv1.weight.is_contiguous()


def nan(model: nn.Module) -> nn.Module:
    model.block2.conv1.weight.data[0, 0, 0, 0] = float("nan")
    return model


@dataclass
class Features:
    values: Tensor


class Telling(SmallNet):
    """Returns something whose tensors nobody would find."""

    def forward(self, x: Tensor) -> tuple[Tensor, Features]:
        y = self.stem(x)
        return super().forward(x), Features(y)


class Hidden(nn.Module):
    """Hides its layers from autograd."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


@pytest.mark.parametrize(
    ("change", "x", "amount", "message"),
    [
        (None, IMAGE, 1.0, "amount is 1.0, accepted is a number from 0 to below 1"),
        (None, IMAGE, "half", "amount is 'half'"),
        (None, (4, 5, 16, 16), 0.5, "SmallNet cannot be recorded on the example inputs: RuntimeError"),
        (nan, IMAGE, 0.5, "weights that 'stem.0' or its readers hold are NaN or infinite"),
        (lambda model: settled(Telling()), IMAGE, 0.5, "the model returns a Features, accepted are tensors in tuples"),
        (Hidden, IMAGE, 0.5, "Hidden cannot be recorded .* autograd records"),
    ],
)
def test_a_failure_leaves_the_model_as_it_was(change, x, amount, message: str) -> None:
    model = settled(SmallNet())
    model = model if change is None else change(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        ta.remove_channels_(model, example(x), amount)
    with pytest.raises(ValueError, match="example_inputs is Tensor, accepted is a tuple of tensors"):
        ta.remove_channels_(model, *example(x), 0.5)
    after = model.state_dict()
    assert all(torch.equal(after[name].nan_to_num(), tensor.nan_to_num()) for name, tensor in before.items())
    assert record_of(model) == {}


def test_sparsify_says_who_removes_channels() -> None:
    with pytest.raises(ValueError, match="'channel', accepted are those of masks; remove_channels_"):
        ta.sparsify_(SmallNet(), ta.Sparsity("channel", 0.5))
    with pytest.raises(ValueError, match="scope is 'global', accepted for channel is layer"):
        ta.Sparsity("channel", 0.5, scope="global")


def test_without_torch_pruning_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ImportError, match=r"`pip install torch-pruning`, the extra torchaccel\[channel\]"):
        ta.remove_channels_(SmallNet(), example(IMAGE), 0.5)
    ran = []
    with pytest.raises(ImportError, match="torch-pruning"):
        ta.optimize(SmallNet(), example(IMAGE), sparsity=ta.Sparsity("channel", 0.5), evaluate=lambda m: ran.append(m))
    assert not ran


def test_torch_pruning_is_imported_when_needed() -> None:
    code = "import sys, torchaccel; assert 'torch_pruning' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
