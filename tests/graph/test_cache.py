"""The cache of choices: what it takes for the same comparison, and files that are damaged or cannot be written."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from torchaccel.graph import cache
from torchaccel.graph.cache import ChoiceCache, key
from torchaccel.nn import Int8Conv2d
from torchaccel.nn.dense import DenseConv2d

ENTRY = {"speedup": 2.0, "low": 1.5, "dense_ms": 1.0, "chosen_ms": 0.5}


def test_what_either_layer_sees_counts() -> None:
    conv = nn.Conv2d(16, 16, 3)
    dense, int8 = DenseConv2d.from_float(conv), Int8Conv2d.from_float(conv)
    x, q = torch.randn(2, 16, 8, 8), torch.zeros(2, 16, 8, 8, dtype=torch.uint8)
    first = key(dense, (x,), int8, (q,))
    assert first == key(dense, (x + 1,), int8, (q,))
    others = [
        key(dense, (x.to(memory_format=torch.channels_last),), int8, (q,)),
        key(dense, (x,), int8, (x,)),
        key(dense, (x[:1],), int8, (q[:1],)),
        key(dense, (x.bfloat16(),), int8, (q,)),
    ]
    assert len({first, *others}) == 5


def test_entries_come_back_and_damaged_ones_count_as_none(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "choices.json"
    kept = ChoiceCache(path)
    kept.put("a", ENTRY)
    kept.save()
    assert ChoiceCache(path).get("a") == ENTRY and ChoiceCache(path).get("b") is None
    stored = json.loads(path.read_text())
    stored["entries"] |= {"b": {"speedup": 2.0}, "c": [1]}
    path.write_text(json.dumps(stored))
    assert ChoiceCache(path).get("a") == ENTRY
    assert ChoiceCache(path).get("b") is None and ChoiceCache(path).get("c") is None
    path.write_text("[]")
    assert ChoiceCache(path).get("a") is None


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch) -> None:
    def full(*args: object) -> None:
        raise OSError("no space left")

    path = tmp_path / "choices.json"
    path.write_text("old")
    kept = ChoiceCache(path)
    kept.put("a", ENTRY)
    monkeypatch.setattr(cache.os, "replace", full)
    kept.save()
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
