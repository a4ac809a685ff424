"""doctor: what serves which op, why, and what to do, on this machine and on machines made up here."""

from __future__ import annotations

import json

import pytest
import torch

from torchaccel import _native, ops
from torchaccel.data import Decoder
from torchaccel.workflow import doctor as module
from torchaccel.workflow.doctor import DEVICES, doctor

NATIVE = Decoder("native", "libjpeg-turbo 9")
NOT_LOADED = {"path": "x.so", "loaded": False, "reason": "a planted reason"}
LOADED = {"path": "x.so", "loaded": True, "reason": None}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Call with the libraries' states, the (op, device) pairs that have kernels, and the GPUs."""

    def make(
        cpu: dict, cuda: dict, kernels: set, gpus: tuple = (), torch_cuda: str | None = "13.0", images: Decoder = NATIVE
    ) -> module.Doctor:
        monkeypatch.setattr(_native, "status", lambda: {"cpu": cpu, "cuda": cuda})
        monkeypatch.setattr(ops, "has_kernel", lambda op, device: (op, device) in kernels)
        monkeypatch.setattr(module, "_gpus", lambda: gpus)
        monkeypatch.setattr(module, "decoder", lambda: images)
        monkeypatch.setattr(torch.version, "cuda", torch_cuda)
        return doctor()

    return make


def everything() -> set[tuple[str, str]]:
    return {(op, device) for op in ops.names() for device in DEVICES}


def test_it_reads_the_dispatcher_here() -> None:
    found = doctor()
    assert [(entry.op, entry.device) for entry in found.ops] == [
        (op, device) for op in ops.names() for device in DEVICES
    ]
    for entry in found.ops:
        key = entry.device.upper()
        native = torch._C._dispatch_has_kernel_for_dispatch_key(f"torchaccel::{entry.op}", key)
        assert entry.by == ("native" if native else "reference")
        assert native or entry.reason
    assert found.versions["torch"] == torch.__version__
    assert found.isa_used == _native.isa() and found.isas_available == _native.isas_available()


def test_its_dictionary_is_json() -> None:
    found = doctor().to_dict()
    assert json.loads(json.dumps(found))["ops"][0] == found["ops"][0]
    assert set(found) >= {"versions", "platform", "cpu", "isa_used", "isas_available", "libraries", "ops", "advice"}


def test_its_text_names_every_op() -> None:
    text = doctor().summary()
    assert all(op in text for op in ops.names()) and "what to do" in text and torch.__version__ in text


def test_a_missing_cpu_library_gives_the_reason_and_the_way_out(machine) -> None:
    found = machine(NOT_LOADED, LOADED, {(op, "cuda") for op in ops.names()})
    assert {entry.reason for entry in found.ops if entry.device == "cpu"} == {"a planted reason"}
    assert any("TORCHACCEL_BUILD=cpu" in line or "Linux x86-64 only" in line for line in found.advice)
    assert "reference on cpu for all ops: a planted reason" in found.summary()


def test_a_missing_cuda_library_beside_a_cuda_torch(machine) -> None:
    found = machine(LOADED, NOT_LOADED, {(op, "cpu") for op in ops.names()})
    (line,) = found.advice
    assert "CUDA 13.0" in line and "TORCHACCEL_CUDA_LIBRARY" in line


def test_a_cpu_torch(machine) -> None:
    found = machine(LOADED, NOT_LOADED, {(op, "cpu") for op in ops.names()}, torch_cuda=None)
    assert found.advice == ("for CUDA kernels: install a torch with CUDA, then torchaccel again where nvcc is found",)


def test_an_op_without_a_kernel_in_a_loaded_library(machine) -> None:
    name = ops.names()[0]
    found = machine(LOADED, LOADED, everything() - {(name, "cpu")})
    assert [(e.op, e.device, e.reason) for e in found.ops if e.by == "reference"] == [
        (name, "cpu", "this version has no native kernel for it")
    ]
    assert found.advice == () and "nothing: all is well" in found.summary()


@pytest.mark.parametrize("by", ["pillow", "none"])
def test_who_decodes_images_and_how_to_have_it_faster(machine, by: str) -> None:
    found = machine(
        LOADED, LOADED, everything(), images=Decoder(by, "Pillow 9" if by == "pillow" else "", "no headers")
    )
    (line,) = found.advice
    assert line.startswith("for fast image loading: no headers") and ("pip install" in line) == (by == "none")
    assert f"image decoder:    {by} ({'Pillow 9' if by == 'pillow' else 'no headers'})" in found.summary()
    assert found.to_dict()["images"]["by"] == by


def test_an_old_gpu_is_named(machine) -> None:
    found = machine(LOADED, LOADED, everything(), ({"name": "Tesla V100", "capability": "7.0"},))
    assert "Tesla V100 is older than compute capability 8.0" in found.advice[0]
    assert "Tesla V100 (sm_70)" in found.summary()
