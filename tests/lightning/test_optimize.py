"""ta.lightning.optimize: from a trained LightningModule to a Result, by Lightning's own validation and training."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

import torchaccel as ta
from tests.lightning.digits import Classifier, Digits, network, trainer, zeros

optimizing = importlib.import_module("torchaccel.lightning.optimize")  # the name is taken by the function


@pytest.fixture(scope="module")
def trained() -> Classifier:
    pl.seed_everything(0, verbose=False)
    module = Classifier()
    trainer(3).fit(module, datamodule=Digits())
    return module


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What reaches `torchaccel.optimize`, in its place."""
    calls: dict[str, Any] = {}

    def recorded(model: nn.Module, inputs: tuple[Tensor, ...], **settings: Any) -> None:
        calls.update(settings, model=model, inputs=inputs)

    monkeypatch.setattr(optimizing, "optimize_model", recorded)
    yield calls


def validated(module: pl.LightningModule) -> dict[str, float]:
    return dict(trainer(1).validate(module, datamodule=Digits(), verbose=False)[0])


def test_removed_channels_are_trained_over_and_validated(trained: Classifier) -> None:
    result = ta.lightning.optimize(
        trained, Digits(), metric="val_loss", mode="min", sparsity=ta.Sparsity("channel", 0.5, steps=(0.25, 0.5)),
        int8=None, finetune={"max_epochs": 3}, max_drop=0.5, min_speedup=0.0,
    )  # fmt: skip
    removed = result.report.data["removed"]
    assert {name: len(left) for name, left in removed["remaining"].items()} == {
        "net.0.0": 16, "net.1.0": 32, "net.2.0": 32
    }  # fmt: skip
    assert result.passed and result.report.data["baseline"]["accuracy"] > -1.5
    assert trained.net[1][0].out_channels == 64


def test_a_module_becomes_a_model_that_lightning_runs(trained: Classifier, tmp_path: Any) -> None:
    before, attached = copy.deepcopy(trained.state_dict()), trained.trainer
    result = ta.lightning.optimize(
        trained,
        Digits(),
        metric="val_loss",
        mode="min",
        sparsity=ta.Sparsity("1x4", 0.5),
        int8=ta.Int8Static(batches=2),
        finetune={"max_epochs": 2},
        max_drop=0.2,
        min_speedup=0.0,  # whatever else the machine does
    )
    assert result.passed and trained.trainer is attached
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    assert result.report.data["baseline"]["accuracy"] == pytest.approx(-validated(trained)["val_loss"], rel=1e-4)
    fast = ta.lightning.with_model(trained, result.model)
    assert result.report.data["optimized"]["accuracy"] == pytest.approx(-validated(fast)["val_loss"], rel=1e-4)
    ta.save(result.model, tmp_path / "m.safetensors")
    x = torch.randn(7, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(ta.load(tmp_path / "m.safetensors", Classifier)(x), result.model(x))


def test_calibration_is_what_reaches_forward(trained: Classifier, given: dict[str, Any]) -> None:
    ta.lightning.optimize(trained, Digits(batch_size=64), int8=ta.Int8Static(batches=3))
    assert [len(x) for (x,) in given["calibration"]] == [64, 64, 64]
    assert given["inputs"] is given["calibration"][0] and given["evaluate"] is given["finetune"] is None
    together = torch.cat([x for (x,) in given["calibration"]])
    assert together.min() == pytest.approx(-0.3 / 0.37), "after on_after_batch_transfer"
    images = Digits()
    images.setup("fit")
    known = {tuple(x.flatten().tolist()) for x in images.train.tensors[0].sub(0.3).div(0.37)}
    assert all(tuple(x.flatten().tolist()) in known for x in together), "of the training data"


def test_loaders_stand_in_for_a_datamodule(trained: Classifier, given: dict[str, Any]) -> None:
    data = Digits()
    data.setup("fit")
    ta.lightning.optimize(trained, val_dataloaders=data.val_dataloader(), metric="val_acc", int8=None)
    assert given["calibration"] is None and given["inputs"][0].shape == (200, 1, 8, 8)
    expected = trainer(1).validate(trained, data.val_dataloader(), verbose=False)[0]["val_acc"]
    assert given["evaluate"](copy.deepcopy(trained).eval()) == pytest.approx(expected)


def test_example_inputs(trained: Classifier, given: dict[str, Any]) -> None:
    module = copy.deepcopy(trained)
    module.example_input_array = torch.zeros(3, 1, 8, 8)
    ta.lightning.optimize(module, Digits())
    assert given["inputs"][0].shape == (3, 1, 8, 8)
    ta.lightning.optimize(module, Digits(), example_inputs=(torch.zeros(5, 1, 8, 8),))
    assert given["inputs"][0].shape == (5, 1, 8, 8)


def test_the_metric_is_that_of_the_model_in_place(trained: Classifier, given: dict[str, Any]) -> None:
    for part, model in (("", Classifier()), ("net", network())):
        module = copy.deepcopy(trained)
        module.direct = part == "net"
        ta.lightning.optimize(module, Digits(), part=part, metric="val_acc")
        assert given["model"] is module.get_submodule(part)
        assert given["evaluate"](given["model"].eval()) == pytest.approx(validated(trained)["val_acc"])
        assert given["evaluate"](model.eval()) < 0.4, "another network, without training"


@pytest.mark.parametrize("part", ["", "net"])
def test_finetuning_trains_the_pruned_part(trained: Classifier, given: dict[str, Any], part: str) -> None:
    module = copy.deepcopy(trained)
    module.direct = part == "net"
    ta.lightning.optimize(
        module, Digits(), part=part, metric="val_acc", finetune={"max_epochs": 2}, sparsity=ta.Sparsity("1x4", 0.75)
    )
    model = copy.deepcopy(given["model"]).eval()
    ta.sparsify_(model, ta.Sparsity("1x4", 0.75))
    cut = given["evaluate"](model)
    given["finetune"](model, 0)
    assert given["evaluate"](model) > cut + 0.1
    assert sum(share == pytest.approx(0.75, abs=1e-3) for share in zeros(model).values()) == 2
    assert getattr(model, "_trainer", None) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"part": "nett"}, "part: given 'nett', accepted is the name of a submodule, such as 'net'"),
        ({"mode": "up"}, "mode: given 'up', accepted are max and min"),
        ({"finetune": 3}, 'finetune: given int, accepted are settings of a Trainer, such as {"max_epochs": 2}'),
        ({"datamodule": Digits().setup}, "datamodule: given method, accepted is a LightningDataModule"),
        ({"sparsity": 0.5}, "sparsity: given 0.5, accepted is a Sparsity or None"),
        ({"finetune": {"max_epochs": 1}}, "finetune: given without sparsity"),
    ],
)
def test_bad_arguments(trained: Classifier, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as raised:
        ta.lightning.optimize(trained, **{"datamodule": Digits()} | settings)
    assert message in str(raised.value)


def test_a_validation_that_would_judge_another_model_is_refused(trained: Classifier) -> None:
    module = copy.deepcopy(trained)
    module.direct = True
    with pytest.raises(ValueError, match=r"part: given '', but Classifier.validation_step never calls self; accepted"):
        ta.lightning.optimize(module, Digits(), metric="val_acc")
    with pytest.raises(RuntimeError, match=r"metric: given 'acc', accepted is what validation logs: val_acc, val_loss"):
        ta.lightning.optimize(trained, Digits(), metric="acc")
    with pytest.raises(ValueError, match="module: given Sequential, accepted is a LightningModule"):
        ta.lightning.optimize(trained.net, Digits())  # type: ignore[arg-type]
