"""The demo's ResNets against torchvision's names and shapes, written down here, since torchvision is not needed."""

import pytest
import torch
from torch import fx

from torchaccel.demo import resnet18, resnet50

BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def expected_shapes(depths: tuple[int, ...], kernels: tuple[int, ...], expansion: int) -> dict[str, tuple[int, ...]]:
    """The state dict of torchvision's resnet18 or resnet50, from the table of the paper."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv_bn(conv: str, bn: str, out: int, inp: int, kernel: int) -> None:
        shapes[f"{conv}.weight"] = (out, inp, kernel, kernel)
        shapes.update({f"{bn}.{key}": () if key == "num_batches_tracked" else (out,) for key in BN})

    conv_bn("conv1", "bn1", 64, 3, 7)
    channels = 64
    for stage, (depth, width) in enumerate(zip(depths, (64, 128, 256, 512), strict=True), 1):
        for block in range(depth):
            prefix = f"layer{stage}.{block}"
            inp = channels
            for i, kernel in enumerate(kernels, 1):
                out = width * expansion if i == len(kernels) else width
                conv_bn(f"{prefix}.conv{i}", f"{prefix}.bn{i}", out, inp, kernel)
                inp = out
            if block == 0 and channels != width * expansion:
                conv_bn(f"{prefix}.downsample.0", f"{prefix}.downsample.1", width * expansion, channels, 1)
            channels = width * expansion
    shapes |= {"fc.weight": (1000, channels), "fc.bias": (1000,)}
    return shapes


CASES = {
    "resnet18": (resnet18, (2, 2, 2, 2), (3, 3), 1, 11_689_512),
    "resnet50": (resnet50, (3, 4, 6, 3), (1, 3, 1), 4, 25_557_032),
}


@pytest.mark.parametrize("name", CASES)
def test_state_dict_is_torchvisions(name: str) -> None:
    build, depths, kernels, expansion, parameters = CASES[name]
    model = build(in_channels=3, num_classes=1000)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert shapes == expected_shapes(depths, kernels, expansion)
    assert list(shapes)[:2] == ["conv1.weight", "bn1.weight"]
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_stride_of_a_bottleneck_is_on_its_3x3_convolution() -> None:
    block = resnet50().layer2[0]
    assert (block.conv1.stride, block.conv2.stride, block.conv3.stride) == ((1, 1), (2, 2), (1, 1))


@pytest.mark.parametrize("build", [resnet18, resnet50])
def test_without_arguments_the_demos_model_is_built_and_traces(build) -> None:
    model = build().eval()
    x = torch.randn(2, 1, 28, 28)
    with torch.inference_mode():
        expected = model(x)
        assert expected.shape == (2, 10)
        assert torch.equal(fx.symbolic_trace(model)(x), expected)


def test_feature_map_sizes() -> None:
    sizes = {}
    model = resnet18(3, 7).eval()
    for name in ("conv1", "maxpool", "layer1", "layer2", "layer3", "layer4"):
        module = model.get_submodule(name)
        module.register_forward_hook(lambda m, i, o, name=name: sizes.__setitem__(name, tuple(o.shape[1:])))
    with torch.inference_mode():
        model(torch.zeros(1, 3, 64, 64))
    assert sizes == {
        "conv1": (64, 32, 32), "maxpool": (64, 16, 16), "layer1": (64, 16, 16), "layer2": (128, 8, 8),
        "layer3": (256, 4, 4), "layer4": (512, 2, 2),
    }  # fmt: skip


def test_builds_without_memory_on_the_meta_device() -> None:
    with torch.device("meta"):
        assert resnet18().fc.weight.is_meta


@pytest.mark.parametrize("argument", ["in_channels", "num_classes"])
def test_counts_below_one_are_refused(argument: str) -> None:
    with pytest.raises(ValueError, match=f"{argument} is 0, accepted is 1 or more"):
        resnet18(**{argument: 0})
