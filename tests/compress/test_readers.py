"""why_kept: finding modules that read a layer's weight without calling the layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models import SmallNet
from torchaccel.compress import why_kept


class Reader(nn.Module):
    """Reads `read.weight` in forward, `late.bias` in a helper's lambda, `inner.deep.weight` below."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.late, self.called = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.inner = nn.ModuleDict({"deep": nn.Conv2d(4, 4, 1)})
        nn.init.zeros_(self.called.weight)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.called.bias)

    def helper(self, x: Tensor) -> Tensor:
        return (lambda y: y + self.late.bias)(x)

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x, self.read.weight) + self.inner.deep.weight[:, :, 0, 0]
        return self.called(self.helper(x))


class Inherited(Reader):
    pass


def test_finds_reads_at_work_and_not_in_initialization() -> None:
    reason = "Inherited reads its weight by itself"
    assert why_kept(nn.Sequential(Inherited())) == {"0.read": reason, "0.late": reason, "0.inner.deep": reason}


def test_module_attributes_two_levels_down() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Module()
            self.block.deep = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.block.deep.weight)

    assert set(why_kept(Outer())) == {"block.deep"}


def test_reading_a_dtype_counts() -> None:
    """An int8 layer would answer with int8."""

    class Casting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.to(self.fc.weight.dtype))

    assert set(why_kept(Casting())) == {"fc"}


def test_plain_networks_have_no_readers() -> None:
    assert why_kept(SmallNet()) == {}
    assert why_kept(nn.Sequential(nn.Linear(4, 4), nn.Conv2d(3, 3, 1))) == {}


def test_attention() -> None:
    decoder = nn.TransformerDecoderLayer(16, 2, 32)
    assert set(why_kept(decoder)) == {"self_attn.out_proj", "multihead_attn.out_proj"}
    encoder = nn.TransformerEncoderLayer(16, 2, 32)
    assert set(why_kept(encoder)) == {"self_attn.out_proj", "linear1", "linear2"}
    assert torch.is_tensor(encoder.linear1.weight)
