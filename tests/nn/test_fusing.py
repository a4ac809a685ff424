"""What the graph fuses into a layer: activation, BatchNorm, residual and int8 output, against the same steps apart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.nn.cases import ALL, CONV, error, make

_FUNCTIONS = {"relu": torch.relu, "gelu": torch.nn.functional.gelu, "silu": torch.nn.functional.silu}
ADDING = tuple(kind for kind in CONV if not kind.startswith("transposed"))
INT8_CONV = tuple(kind for kind in ADDING if kind != "sparse float")


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("name", _FUNCTIONS)
def test_activation(kind: str, name: str) -> None:
    case = make(kind)
    expected = _FUNCTIONS[name](case.layer(case.x))
    case.layer.fuse_activation(name)
    torch.testing.assert_close(case.layer(case.x), expected, rtol=1e-5, atol=1e-6)
    assert case.layer.config()["activation"] == name
    with pytest.raises(ValueError, match=f"activation is already '{name}'"):
        case.layer.fuse_activation("relu")


@pytest.mark.parametrize("kind", ADDING)
def test_residual_comes_before_the_activation(kind: str) -> None:
    case = make(kind)
    y = case.layer(case.x)
    residual = torch.randn_like(y)
    case.layer.fuse_activation("relu")
    torch.testing.assert_close(case.layer(case.x, residual), torch.relu(y + residual), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", INT8_CONV)
def test_int8_residual(kind: str) -> None:
    case = make(kind)
    y = case.layer(case.x)
    residual = torch.randint(0, 256, y.shape, dtype=torch.uint8)
    case.layer.set_residual(0.02, 7, torch.uint8)
    expected = y + (residual.float() - 7) * 0.02
    torch.testing.assert_close(case.layer(case.x, residual), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"residual is torch.float32 with scale_residual"):
        case.layer(case.x, y)
    copy = type(case.layer)(**case.layer.config())
    copy.load_state_dict(case.layer.state_dict())
    assert torch.equal(copy(case.x, residual), case.layer(case.x, residual))


@pytest.mark.parametrize("kind", ["linear static u8", "linear dynamic", *INT8_CONV])
@pytest.mark.parametrize(("dtype", "zero_point"), [(torch.uint8, 3), (torch.int8, -5)])
def test_int8_output(kind: str, dtype: torch.dtype, zero_point: int) -> None:
    case = make(kind)
    y = case.layer(case.x)
    scale = 0.031
    case.layer.set_output(scale, zero_point, dtype)
    info = torch.iinfo(dtype)
    expected = (torch.round(y * torch.reciprocal(torch.tensor(scale))) + zero_point).clamp(info.min, info.max).to(dtype)
    assert torch.equal(case.layer(case.x), expected)
    assert case.layer(case.x.half()).dtype == dtype
    copy = type(case.layer)(**case.layer.config())
    copy.load_state_dict(case.layer.state_dict())
    assert torch.equal(copy(case.x), expected)


@pytest.mark.parametrize("kind", [k for k in ALL if "weight-only" not in k and k != "sparse float"])
@pytest.mark.parametrize("bias", [True, False])
def test_fold_affine(kind: str, bias: bool) -> None:
    case = make(kind)
    if not bias:
        case.layer.bias = None
    y = case.layer(case.x)
    channels = y.shape[-1 if y.dim() == 3 else 1]
    gamma, beta = torch.randn(channels), torch.randn(channels)

    def per_channel(v: Tensor) -> Tensor:
        return v if y.dim() == 3 else v.view(-1, 1, 1)

    expected = y * per_channel(gamma) + per_channel(beta)
    case.layer.fold_affine(gamma, beta)
    assert error(case.layer(case.x), expected) < 1e-6
    assert case.layer.config()["bias"]


def test_fold_affine_refuses_what_it_cannot_fold() -> None:
    one = torch.ones(32)
    layer = make("conv static u8").layer
    with pytest.raises(ValueError, match=r"gamma has shape \(31,\), accepted is \(32,\)"):
        layer.fold_affine(one[:31], one)
    with pytest.raises(ValueError, match="beta holds NaN"):
        layer.fold_affine(one, one * float("nan"))
    layer.fuse_activation("relu")
    with pytest.raises(ValueError, match="fold_affine comes before"):
        layer.fold_affine(one, one)


def test_linear_adds_no_residual() -> None:
    with pytest.raises(ValueError, match="adds no residual"):
        make("linear dynamic").layer.set_residual(0.1, 0, torch.uint8)
