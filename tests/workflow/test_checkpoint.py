"""A checkpoint reloads without the original weights, to the bit; a damaged or foreign one is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import torchaccel as ta
from tests.models import Branching, SmallNet, settled
from torchaccel.compress import calibrate, finalize_masks_, int8_module, pattern_of
from torchaccel.graph.connect import assemble
from torchaccel.graph.prepare import prepare
from torchaccel.workflow.checkpoint import KEY, read_metadata
from torchaccel.workflow.forms import _channels_last

INPUTS = (torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)),)


def _every_layer_int8(model: nn.Module) -> nn.Module:
    """The graph that `optimize` assembles, with every layer exchanged whatever its speed."""
    ta.sparsify_(model, ta.Sparsity("1x4", 0.75))
    finalize_masks_(model)
    prepared = prepare(model, INPUTS)
    ranges = calibrate(prepared.dense, prepared.names, [INPUTS], ta.Int8Static())
    chosen = {}
    for name in prepared.names:
        dense = prepared.dense.get_submodule(name)
        chosen[name] = int8_module(dense.to_float(), ta.Int8Static(), ranges[name], pattern_of(dense.weight))
        chosen[name].fuse_activation(dense.activation)
    return assemble(prepared.dense, chosen)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    model = _every_layer_int8(settled(SmallNet()))
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    ta.save(model, path)
    return model, path


def test_a_graph_of_sparse_int8_layers_reloads_to_the_bit(saved: tuple[nn.Module, Path]) -> None:
    model, path = saved
    kinds = {layer["kind"] for layer in read_metadata(path)["layers"].values()}
    assert "sparse_int8_conv2d" in kinds
    loaded = ta.load(path, SmallNet)
    with torch.no_grad():
        for n in (4, 1, 7):
            x = torch.randn(n, 3, 16, 16)
            assert torch.equal(loaded(x), model(x))
    assert not any(t.device.type == "meta" for t in (*loaded.parameters(), *loaded.buffers()))


def test_a_second_generation_is_the_same_file(saved: tuple[nn.Module, Path], tmp_path: Path) -> None:
    ta.save(ta.load(saved[1], SmallNet), tmp_path / "again.safetensors")
    first, again = load_file(saved[1]), load_file(tmp_path / "again.safetensors")
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_the_file_is_small(saved: tuple[nn.Module, Path], tmp_path: Path) -> None:
    ta.save(settled(SmallNet()), tmp_path / "float.safetensors")
    assert saved[1].stat().st_size < 0.45 * (tmp_path / "float.safetensors").stat().st_size


@pytest.mark.parametrize("config", [ta.Int8Dynamic(), ta.Int8WeightOnly()])
def test_modules_that_quantize_made(config: object, tmp_path: Path) -> None:
    model = settled(Branching(), (2, 3, 16, 16))
    head = nn.Sequential(model, nn.Flatten(), nn.Linear(16 * 144, 8)).eval()
    ta.quantize_(head, config)
    ta.save(head, tmp_path / "m.safetensors")
    loaded = ta.load(
        tmp_path / "m.safetensors", lambda: nn.Sequential(Branching(), nn.Flatten(), nn.Linear(16 * 144, 8))
    )
    with torch.no_grad():
        assert torch.equal(loaded(INPUTS[0]), head(INPUTS[0]))


class _Tied(nn.Module):
    """Shared weights, and a buffer that no state dict holds."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = self.a.weight
        self.register_buffer("shift", torch.arange(8.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x)) + self.shift


def test_shared_weights_are_stored_once_and_constants_come_back(tmp_path: Path) -> None:
    model = _Tied().eval()
    ta.save(model, tmp_path / "tied.safetensors")
    assert len(load_file(tmp_path / "tied.safetensors")) == 3
    x = torch.randn(2, 8)
    with torch.no_grad():
        assert torch.equal(ta.load(tmp_path / "tied.safetensors", _Tied)(x), model(x))


class _Masked(nn.Module):
    """A bool input, and a tensor that is a plain attribute; `traceable` or not."""

    def __init__(self, traceable: bool) -> None:
        super().__init__()
        self.a, self.traceable, self.shift = nn.Linear(8, 8), traceable, torch.arange(8.0)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        y = (self.a(x) + self.shift + torch.ones(8)).masked_fill(mask, 0.0)
        return y if self.traceable or y.sum() > -1e9 else x


@pytest.mark.parametrize("traceable", [True, False])
def test_bool_inputs_and_plain_tensors_come_back(traceable: bool, tmp_path: Path) -> None:
    inputs = (torch.randn(2, 8), torch.rand(2, 8) > 0.5)
    model = _Masked(traceable).eval()
    ta.save(prepare(model, inputs).dense, tmp_path / "m.safetensors")
    loaded = ta.load(tmp_path / "m.safetensors", lambda: _Masked(traceable))
    with torch.no_grad():
        assert torch.equal(loaded(*inputs), model(*inputs))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_dense_form_reloads_in_its_dtype_and_memory_format(dtype: torch.dtype | None, tmp_path: Path) -> None:
    model = _channels_last(settled(SmallNet()), dtype)
    ta.save(model, tmp_path / "m.safetensors")
    loaded = ta.load(tmp_path / "m.safetensors", SmallNet)
    with torch.no_grad():
        assert torch.equal(loaded(INPUTS[0]), model(INPUTS[0]))
    with pytest.raises(ValueError, match="cast to 'int8'"):
        ta.load(_edited(tmp_path / "m.safetensors", tmp_path / "bad", _wrong_cast), SmallNet)


def _wrong_cast(metadata: dict, tensors: dict) -> None:
    metadata["cast"]["dtype"] = "int8"


def test_views_of_one_weight_are_stored(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).eval()
    model[1].weight = nn.Parameter(model[0].weight.detach().view(-1).view(8, 8))
    model.register_buffer("flat", model[0].weight.detach().view(-1))
    ta.save(model, tmp_path / "m.safetensors")
    assert torch.equal(load_file(tmp_path / "m.safetensors")["flat"], model[0].weight.detach().flatten())


def _edited(source: Path, target: Path, change) -> Path:
    metadata, tensors = read_metadata(source), load_file(source)
    change(metadata, tensors)
    save_file(tensors, target, {KEY: json.dumps(metadata)})
    return target


def _unknown_kind(metadata: dict, tensors: dict) -> None:
    next(iter(metadata["layers"].values()))["kind"] = "os.system"


def _bad_config(metadata: dict, tensors: dict) -> None:
    next(iter(metadata["layers"].values()))["config"]["evil"] = 1


def _missing(metadata: dict, tensors: dict) -> None:
    del tensors["head.scale"]


def _out_of_range(metadata: dict, tensors: dict) -> None:
    name = next(n for n in tensors if n.endswith(".columns"))
    tensors[name] = tensors[name] + 30_000


def _nonfinite(metadata: dict, tensors: dict) -> None:
    name = next(n for n in tensors if n.endswith(".input_scale"))
    tensors[name] = torch.full_like(tensors[name], float("nan"))


def _wrong_format(metadata: dict, tensors: dict) -> None:
    metadata["format"] = 99


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_unknown_kind, "os.system"),
        (_bad_config, "evil"),
        (_missing, "head"),
        (_out_of_range, "columns"),
        (_nonfinite, "input_scale"),
        (_wrong_format, "99"),
    ],
)
def test_a_damaged_checkpoint_is_refused(saved: tuple[nn.Module, Path], tmp_path: Path, change, says: str) -> None:
    path = _edited(saved[1], tmp_path / "bad.safetensors", change)
    with pytest.raises(ValueError, match=says):
        ta.load(path, SmallNet)


@pytest.mark.parametrize("keep", [0, 4, 100, 2000, -1])
def test_a_truncated_checkpoint_is_refused(saved: tuple[nn.Module, Path], tmp_path: Path, keep: int) -> None:
    (tmp_path / "cut.safetensors").write_bytes(saved[1].read_bytes()[:keep])
    with pytest.raises(ValueError, match="truncated"):
        ta.load(tmp_path / "cut.safetensors", SmallNet)


def test_a_foreign_file_and_a_missing_one(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="no 'torchaccel' metadata"):
        ta.load(tmp_path / "foreign.safetensors", SmallNet)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ta.load(tmp_path / "nowhere.safetensors", SmallNet)


def test_another_model_is_refused(saved: tuple[nn.Module, Path]) -> None:
    with pytest.raises(ValueError, match="model_fn"):
        ta.load(saved[1], lambda: nn.Sequential(nn.Conv2d(3, 8, 3)))
    with pytest.raises(ValueError, match="out_features is 7"):
        ta.load(saved[1], lambda: SmallNet(classes=7))

    class Other(SmallNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 2

    with pytest.raises(ValueError, match="another"):
        ta.load(saved[1], Other)


def test_a_failed_save_leaves_the_old_file(saved: tuple[nn.Module, Path], tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")

    def full(*args: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("torchaccel.workflow.checkpoint.save_file", full)
    with pytest.raises(OSError, match="no space"):
        ta.save(saved[0], path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
