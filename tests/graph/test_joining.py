"""Concatenations, sums and transposed convolutions: int8 passes them, and chains hold them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import torchaccel as ta
from tests.graph.test_chain import chains, found
from tests.graph.test_layouts import all_sparse
from tests.graph.test_pools import all_int8, near
from tests.models import settled
from tests.nn.chain_bodies import running_on
from torchaccel import _native
from torchaccel.graph.chain import chained, unchain
from torchaccel.graph.connect import assemble
from torchaccel.graph.prepare import prepare
from torchaccel.graph.trace import fingerprint, module_of, trace
from torchaccel.nn import InputRange, Int8Add, Int8Conv2d, Int8ConvTranspose2d, _chain_builder
from torchaccel.nn.concatenation import parts_of
from torchaccel.nn.dense import DenseConv2d, DenseConvTranspose2d
from torchaccel.nn.input_range import spanning
from torchaccel.nn.upsample import Upsample


def conv(i: int, o: int, kernel: int = 3, **settings: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, kernel, padding=kernel // 2, **settings), nn.BatchNorm2d(o), nn.ReLU())


class TinyUNet(nn.Module):
    """Two sizes; one pooling layer for both ways down."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.head = nn.MaxPool2d(2), nn.Conv2d(8, 2, 1)
        self.a, self.b, self.c = conv(3, 8), conv(8, 16), conv(16, 32)
        self.grow1, self.norm = nn.ConvTranspose2d(32, 16, 2, 2), nn.BatchNorm2d(16)
        self.up1, self.grow2, self.up2 = conv(32, 16), nn.ConvTranspose2d(16, 8, 2, 2), conv(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(self.pool(a))
        y = self.norm(self.grow1(self.c(self.pool(b))))
        y = self.grow2(self.up1(torch.cat((b, y), 1)))
        return self.head(self.up2(torch.cat([a, y], dim=1)))


class Branches(nn.Module):
    """Inception's: windows of several sizes beside pooling, then a smaller image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.three, self.five = conv(3, 8), conv(8, 8, 1), conv(8, 12), conv(8, 4, 5)
        self.pool, self.behind = nn.MaxPool2d(3, 1, 1), conv(8, 8, 1)
        self.small, self.smaller, self.last = conv(32, 12, 3, stride=2), nn.MaxPool2d(3, 2, 1), conv(44, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = torch.cat([self.one(x), self.three(x), self.five(x), self.behind(self.pool(x))], 1)
        return self.last(torch.cat([self.small(y), self.smaller(y)], 1))


class Growing(nn.Module):
    """DenseNet's: each layer reads all that were made before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = conv(3, 8), conv(20, 8)
        self.layers = nn.ModuleList(conv(8 + 4 * i, 4) for i in range(3))

    def forward(self, x: Tensor) -> Tensor:
        made = [self.stem(x)]
        for layer in self.layers:
            made.append(layer(torch.cat(made, 1)))
        return self.last(torch.cat(made, 1))


class Summing(nn.Module):
    """LinkNet's: what was activated is added, in place too, and to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 8), conv(8, 16, stride=2), conv(16, 16)
        self.grow, self.norm = nn.ConvTranspose2d(16, 8, 2, 2), nn.BatchNorm2d(8)
        self.d, self.last = conv(8, 8), conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(a)
        y = torch.relu(self.norm(self.grow(torch.add(b, self.c(b)))))
        y = y.add_(a)
        y = torch.relu(y.add(self.d(y)))
        return self.last(y + y)


NETS = TinyUNet, Branches, Growing, Summing
X = torch.randn(3, 3, 24, 36, generator=torch.Generator().manual_seed(4))


def net(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    return settled(kind())


def names_of(graph: nn.Module, kinds: tuple[type[nn.Module], ...]) -> set[str]:
    return {name for name, module in graph.named_modules() if isinstance(module, kinds)}


@pytest.mark.parametrize("kind", NETS)
def test_an_int8_network_is_one_chain_to_the_bit(kind: type[nn.Module]) -> None:
    model = net(kind)
    prepared, chosen = all_int8(model, X)
    apart, fast = assemble(prepared.dense, chosen), assemble(prepared.dense, chosen, chosen.keys())
    (made,) = chains(fast)
    # Only the last layer is not: it gives floats.
    joined = [n for n in made.body.graph.nodes if parts_of(n) or isinstance(module_of(made.body, n), Int8Add)]
    assert len(chosen) - 1 == len(chained(fast)) and len(joined) >= 2
    with torch.no_grad():
        near(apart(X), model(X), 0.05)
        for x in (X, X[:1], torch.randn(2, 3, 16, 40)):
            assert torch.equal(fast(x), apart(x))
        assert all(plan is not None for plan in made._plans.values())


def test_no_concatenation_is_half_made_image_by_image(monkeypatch: pytest.MonkeyPatch) -> None:
    # The widest layer would come late, between what is concatenated behind it.
    monkeypatch.setattr(_chain_builder, "LATE_BYTES", 2000)
    prepared, chosen = all_int8(net(TinyUNet), X)
    apart, fast = assemble(prepared.dense, chosen), assemble(prepared.dense, chosen, chosen.keys())
    with torch.no_grad(), running_on(_native.isa() or "", 1):
        assert torch.equal(fast(X), apart(X))


@pytest.mark.parametrize("kind", NETS)
def test_a_float_network_is_one_chain(kind: type[nn.Module]) -> None:
    model = net(kind)
    dense = prepare(model, (X,)).dense
    fast = assemble(dense, {}, names_of(dense, (DenseConv2d, DenseConvTranspose2d)))
    (made,) = chains(fast)
    with torch.no_grad():
        for x in (X, X[:1], torch.randn(2, 3, 16, 40)):
            near(fast(x), model(x), 1e-5)
        assert all(plan is not None for plan in made._plans.values())


@pytest.mark.parametrize("kind", [TinyUNet, Summing])
@pytest.mark.parametrize("convert", [all_int8, all_sparse])
def test_a_file_brings_the_chain_back(convert, kind: type[nn.Module], tmp_path: Path) -> None:
    prepared, chosen = convert(net(kind), X)
    names = chosen.keys() | names_of(prepared.dense, (DenseConv2d, DenseConvTranspose2d))
    fast = assemble(prepared.dense, chosen, names)
    ta.save(fast, tmp_path / "chained.safetensors")
    loaded = ta.load(tmp_path / "chained.safetensors", kind)
    assert len(chains(loaded)) == len(chains(fast)) == 1 and chained(loaded) == chained(fast)
    with torch.no_grad():
        assert torch.equal(loaded(X), fast(X))


def test_chaining_is_undone() -> None:
    prepared, chosen = all_int8(net(TinyUNet), X)
    before = assemble(prepared.dense, chosen)
    graph = trace(assemble(prepared.dense, chosen, chosen.keys()))
    unchain(graph)
    assert isinstance(before, fx.GraphModule) and fingerprint(graph) == fingerprint(before)


def test_a_part_that_does_not_fill_its_places_keeps_int8_out() -> None:
    class Ragged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d, self.e = conv(3, 8), conv(8, 6), conv(8, 8), conv(14, 8), conv(14, 8)
            self.f = conv(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            b = self.b(x)
            x = self.d(torch.cat([self.c(x), b], 1))  # the last part may be ragged
            return self.f(self.e(torch.cat([b, x], 1)))

    prepared, chosen = all_int8(net(Ragged), X)
    apart, fast = assemble(prepared.dense, chosen), assemble(prepared.dense, chosen, chosen.keys())
    with torch.no_grad():
        assert torch.equal(fast(X), apart(X))
    plans = [plan for made in chains(fast) for plan in made._plans.values()]
    assert None not in plans


def test_all_that_is_concatenated_has_the_range_that_spans_its_readers() -> None:
    prepared, chosen = all_int8(net(TinyUNet), X)
    narrow, wide = (chosen[name].input_range() for name in ("b.0", "up2.0"))  # type: ignore[operator]
    assert narrow != wide
    graph = assemble(prepared.dense, chosen)
    ranges = {graph.get_submodule(name).input_range() for name in ("b.0", "up2.0")}  # type: ignore[operator]
    assert ranges == {spanning([narrow, wide])}
    assert int(graph.get_submodule("grow2").output_zero_point) == ranges.pop().zero_point  # type: ignore[arg-type]
    # A reader that would lose more than a bit keeps its own.
    chosen["b.0"].set_input(narrow.scale / 4, 0, torch.uint8)  # type: ignore[operator]
    graph = assemble(prepared.dense, chosen)
    assert graph.get_submodule("a.0").output_dtype == torch.float32
    with torch.no_grad():
        graph(X)


def test_ranges_span_others() -> None:
    a, b = InputRange(0.5), InputRange(0.25, 128)
    assert spanning([a, InputRange(0.25)]) is a
    both = spanning([a, b])  # -32 to 127.5
    assert both.scale == pytest.approx(159.5 / 255) and both.zero_point == 51
    signed = spanning([InputRange(1.0, 0, torch.int8), InputRange(1.0, -128, torch.int8)])  # -128 to 255
    assert signed.scale == pytest.approx(383 / 255) and signed.zero_point == -43


@pytest.mark.parametrize("change", [{"dim": 2}, {"dim": 0}, {"out": None}])
def test_other_concatenations_are_none(change: dict) -> None:
    graph = trace(net(Growing))
    node = next(n for n in graph.graph.nodes if parts_of(n))
    node.args, node.kwargs = node.args[:1], {"dim": 1} | change
    assert parts_of(node) is None


@pytest.mark.parametrize(
    "settings",
    [{"kernel_size": 3, "stride": 2}, {"kernel_size": (2, 3), "stride": (2, 3)}, {"groups": 2}, {"padding": 1}],
)
def test_windows_that_overlap_stay_float(settings: dict) -> None:
    layer = nn.ConvTranspose2d(4, 4, **({"kernel_size": 2, "stride": 2} | settings))
    with pytest.raises(ValueError, match=r"accepted|other than"):
        Int8ConvTranspose2d.from_float(layer)
    graph = prepare(nn.Sequential(nn.Conv2d(3, 4, 1), layer).eval(), (X,))
    assert "1" not in graph.names


def test_an_output_size_is_what_comes_out() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.grow = nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 4, 2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.grow(self.a(x), output_size=[2 * x.shape[2], 2 * x.shape[3]])

    model = Sized().eval()
    prepared = prepare(model, (X,))
    assert prepared.note is None
    with torch.no_grad():
        near(prepared.dense(X), model(X), 1e-5)
    layer = Int8ConvTranspose2d.from_float(nn.ConvTranspose2d(3, 4, 2, 2))
    assert torch.equal(layer(X, output_size=[48, 72]), layer(X))
    with pytest.raises(ValueError, match=r"output_size is \(50, 72\), accepted are \(48, 72\) to \(49, 73\)"):
        layer(X, output_size=[50, 72])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("given", ["float32", "uint8", "dynamic"])
def test_what_no_pixel_reaches_is_the_bias(given: str, bias: bool) -> None:
    conv = nn.ConvTranspose2d(3, 4, 3, 3, bias=bias)
    layer = Int8ConvTranspose2d.from_float(conv, None if given == "dynamic" else InputRange(0.05, 60, torch.uint8))
    layer.fuse_activation("relu")
    if given != "dynamic":
        layer.set_output(0.02, 7, torch.uint8)
    x = X if given != "uint8" else (X / 0.05 + 60).round().clamp(0, 255).to(torch.uint8)
    y = layer(x, output_size=[3 * X.shape[2] + 2, 3 * X.shape[3] + 1])
    assert y.is_contiguous(memory_format=torch.channels_last)
    expected = torch.relu(conv(X, output_size=y.shape[2:])).detach()
    near(y.float() if given == "dynamic" else (y.float() - 7) * 0.02, expected, 0.1)
    assert torch.equal(y[..., :-2, :-1], layer(x))
    edge = torch.zeros(4) if conv.bias is None else torch.relu(conv.bias.detach())
    assert torch.equal(y[0, :, -1, -1].float(), edge if given == "dynamic" else torch.round(edge * 50) + 7)


def test_a_value_concatenated_outside_of_a_run_is_no_part_of_it() -> None:
    class Outside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (DenseConv2d(c, 3, 1) for c in (3, 3, 6))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.c(torch.cat([self.b(self.a(x)), y], 1))

    assert found(trace(Outside().eval())) == [["a", "b"], ["c"]]


def test_int8_convolutions_alone_hand_int8_on() -> None:
    prepared, chosen = all_int8(net(Branches), X)
    del chosen["five.0"]
    graph = assemble(prepared.dense, chosen)
    assert isinstance(graph.get_submodule("one.0"), Int8Conv2d)
    assert graph.get_submodule("one.0").output_dtype == torch.float32
    with torch.no_grad():
        near(graph(X), net(Branches)(X), 0.05)


class Enlarging(nn.Module):
    """A feature pyramid: nearest neighbours, as a layer and as a function, beside what the way down had."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 8), conv(8, 16, stride=2), conv(16, 16, stride=2)
        self.larger, self.d, self.e = nn.Upsample(scale_factor=2), conv(32, 8), conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(a)
        y = self.d(torch.cat([self.larger(self.c(b)), b], 1))
        return self.e(F.interpolate(y, scale_factor=[2, 2.0], mode="nearest") + a)


@pytest.mark.parametrize("convert", [all_int8, all_sparse])
def test_upsampling_is_in_the_chain(convert, tmp_path: Path) -> None:
    model = net(Enlarging)
    prepared, chosen = convert(model, X)
    names = chosen.keys() | names_of(prepared.dense, (DenseConv2d,))
    apart, fast = assemble(prepared.dense, chosen), assemble(prepared.dense, chosen, names)
    (made,) = chains(fast)
    assert sum(isinstance(m, Upsample) for m in made.body.modules()) == 2
    with torch.no_grad():
        for x in (X, X[:1], torch.randn(2, 3, 16, 40)):
            if convert is all_int8:
                assert torch.equal(fast(x), apart(x))
            near(fast(x), apart(x), 1e-5)
        near(apart(X), prepared.dense(X), 0.05)
    assert None not in made._plans.values()
    ta.save(fast, tmp_path / "m.safetensors")
    with torch.no_grad():
        assert torch.equal(ta.load(tmp_path / "m.safetensors", Enlarging)(X), fast(X))


@pytest.mark.parametrize(
    "upsample",
    [
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Upsample(size=(48, 72)),
        nn.Upsample(scale_factor=1.5),
        nn.Upsample(scale_factor=(2, 3)),
        lambda x: F.interpolate(x[:, :, None], scale_factor=(1, 2, 2))[:, :, 0],
        nn.Sequential(nn.Flatten(2), nn.Upsample(scale_factor=(2,)), nn.Unflatten(1, (4, 1))),
        lambda x: F.interpolate(x, size=x.shape[2:]),
        lambda x: F.interpolate(x, (30, 40)),
        lambda x: F.interpolate(x, scale_factor=2, mode="bicubic", antialias=True),
        lambda x: F.interpolate(x, scale_factor=0.5),
        lambda x: F.interpolate(x.flatten(2), scale_factor=2).unsqueeze(2),
    ],
)
def test_other_upsampling_stays(upsample: Callable[[Tensor], Tensor]) -> None:
    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.upsample = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), upsample

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.upsample(self.a(x)))

    model = Between().eval()
    prepared = prepare(model, (X,))
    assert prepared.note is None and not any(isinstance(m, Upsample) for m in prepared.dense.modules())
    with torch.no_grad():
        near(prepared.dense(X), model(X), 1e-5)


def test_upsampling_repeats_pixels() -> None:
    for x in (X, X.to(torch.int8), (10 * X).to(torch.uint8), X.contiguous(memory_format=torch.channels_last)):
        y = Upsample(3)(x)
        assert torch.equal(y, x.repeat_interleave(3, 2).repeat_interleave(3, 3)) and y.dtype == x.dtype
    with pytest.raises(ValueError, match=r"Upsample: factor is 0, accepted are integers of at least 1"):
        Upsample(0)


def test_pooling_with_a_list_of_sizes_reloads(tmp_path: Path) -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(3, 8), conv(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.avg_pool2d(self.a(x), [2, 1], [1, 2]))

    prepared, chosen = all_int8(net(Listed), X)
    fast = assemble(prepared.dense, chosen, chosen.keys())
    ta.save(fast, tmp_path / "m.safetensors")
    with torch.no_grad():
        assert torch.equal(ta.load(tmp_path / "m.safetensors", Listed)(X), fast(X))
