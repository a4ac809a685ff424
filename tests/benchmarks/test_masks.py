"""bench_masks: whose masks are timed, and what against."""

from __future__ import annotations

import torch
from torch import nn

import bench_masks
import torchaccel as ta
from torchaccel.compress import finalize_masks_
from torchaccel.nn import InputRange, Int8Conv2d, SparseInt8Conv2d


def test_masks_of_sparse_and_of_dense_int8_layers_are_found() -> None:
    model = nn.Sequential(*(nn.Conv2d(32, 32, 3) for _ in range(4)))
    ta.sparsify_(model, ta.Sparsity("1x4", 0.9), filter_fn=lambda module, name: name in "12")
    finalize_masks_(model)
    given = InputRange(0.1)
    masks = [model[i].weight.ne(0) for i in (1, 2)]
    model[1], model[2] = SparseInt8Conv2d.from_float(model[1], "1x4", given), Int8Conv2d.from_float(model[2], given)
    found = dict(bench_masks.pruned_layers(model))
    assert list(found) == ["1", "2"]
    for conv, mask in zip(found.values(), masks, strict=True):
        assert (conv.weight.ne(0) <= mask).all()


def test_the_layer_that_is_timed_has_the_blocks_that_are_kept() -> None:
    kept = torch.rand(32, 9 * 16 // 4) < 0.3
    conv = nn.Conv2d(16, 32, 3, padding=1)
    a = torch.zeros(1, 16, 5, 5, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    columns, row_offsets = bench_masks.step(kept, conv, a).args[2:4]
    assert row_offsets.diff().tolist() == kept.sum(1).tolist()
    assert columns.tolist() == kept.nonzero()[:, 1].tolist()
    assert bench_masks.step(kept, conv, a)().shape == (1, 32, 5, 5)


def test_random_masks_keep_as_many_blocks() -> None:
    kept = torch.zeros(20, 30, dtype=torch.bool)
    kept[:2] = True
    assert bench_masks.shuffled(kept).sum() == 60
    assert bench_masks.shuffled(kept)[2:].any()
