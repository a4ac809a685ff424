"""Wrong arguments raise ValueError that names the op, what was given and what is accepted, native kernel or not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torchaccel import ops
from torchaccel.ops import _check, _library, blocks

Z = torch.zeros(1, dtype=torch.int32)


@pytest.fixture(autouse=True, params=["kernel", "reference"])
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the kernel's own checks, and through those before a reference."""
    if request.param == "reference":
        monkeypatch.setattr(_library, "_native_checks", lambda op, device_type: False)


def q(*shape: int, dtype: torch.dtype = torch.int8) -> Tensor:
    return torch.ones(shape, dtype=dtype)


def linear(**changed: object) -> Tensor:
    arguments = {"a": q(3, 8), "b": q(5, 8), "scale_a": torch.ones(1), "scale_b": torch.ones(5)} | changed
    return ops.int8_linear(**arguments)


def conv(**changed: object) -> Tensor:
    arguments = {"a": q(2, 8, 6, 6), "b": q(4, 8, 3, 3), "scale_a": torch.ones(1), "scale_b": torch.ones(4)} | changed
    return ops.int8_conv2d(**arguments)


def sparse(**changed: object) -> Tensor:
    values, columns, row_offsets = blocks.to_blocks(q(4, 8, 3, 3), "1x4")
    arguments = {
        "a": q(2, 8, 6, 6), "values": values, "columns": columns, "row_offsets": row_offsets, "kernel_size": (3, 3),
        "scale_a": torch.ones(1), "scale_b": torch.ones(4),
    } | changed  # fmt: skip
    return ops.sparse_int8_conv2d(**arguments)


SHARED = [
    ({"a": q(3, 8, dtype=torch.int32)}, "torch.int32"),
    ({"scale_a": torch.ones(7)}, "scale_a has shape"),
    ({"scale_b": torch.ones(99)}, "scale_b has shape"),
    ({"zero_point": torch.zeros(7, dtype=torch.int32)}, "zero_point has shape"),
    ({"bias": torch.ones(1)}, "bias has shape"),
    ({"activation": "swish"}, "'swish', accepted are none, relu, relu6, gelu, silu"),
    ({"out_dtype": torch.float64}, "torch.float64"),
    ({"out_dtype": torch.int8}, "no scale_out"),
    ({"scale_out": torch.ones(1)}, "a scale_out"),
    ({"out_dtype": torch.int8, "scale_out": torch.ones(2)}, "scale_out has 2 elements"),
    ({"out_dtype": torch.int8, "scale_out": torch.tensor([float("nan")])}, "scale_out is nan"),
    ({"out_dtype": torch.uint8, "scale_out": torch.tensor([0.0])}, "scale_out is 0"),
    ({"out_dtype": torch.uint8, "scale_out": torch.tensor([float("inf")])}, "scale_out is inf"),
]

LINEAR = [
    ({"a": q(3, 9)}, "a has K=9, b has K=8"),
    ({"a": q()}, "K=None"),
    ({"b": q(5)}, r"b has shape \(5,\)"),
    ({"b": q(5, 8, dtype=torch.uint8)}, "b is torch.uint8"),
    ({"a": q(1, 131_072), "b": q(5, 131_072)}, "K=131072 could overflow int32"),
    ({"a": q(1, 65_794, dtype=torch.uint8), "b": q(5, 65_794)}, "at most 65793"),
]

GEOMETRY = [
    ({"a": q(2, 7, 6, 6)}, r"\(2, 7, 6, 6\)|C=7"),
    ({"a": q(8, 6, 6)}, r"\(8, 6, 6\)"),
    ({"stride": (0, 1)}, r"stride is \(0, 1\)"),
    ({"stride": (1,)}, "stride"),
    ({"padding": (-1, 0)}, r"padding is \(-1, 0\)"),
    ({"dilation": (1, 0)}, r"dilation is \(1, 0\)"),
    ({"dilation": (4, 4)}, "does not fit an input of"),
    ({"residual": torch.ones(2, 4, 1, 1)}, r"residual has shape \(2, 4, 1, 1\), accepted is \(2, 4, 4, 4\)"),
    ({"residual": q(2, 4, 4, 4)}, "without scale_residual"),
    ({"residual": torch.ones(2, 4, 4, 4), "scale_residual": torch.ones(1)}, "with scale_residual"),
]

CONV = [
    ({"groups": 3}, "groups=3"),
    ({"groups": 0}, "groups=0"),
    ({"b": q(4, 8, 3)}, r"b has shape \(4, 8, 3\)"),
    ({"b": torch.ones(4, 8, 3, 3)}, "b is torch.float32"),
]

SPARSE = [
    ({"values": q(3, 2, 4)}, r"values has shape \(3, 2, 4\)"),
    ({"values": torch.ones(72, 1, 4)}, "values is torch.float32"),
    ({"values": q(72, 64, 64)}, r"a has C=8, accepted are multiples of the block's 64"),
]


@pytest.mark.parametrize(("changed", "says"), SHARED + LINEAR)
def test_int8_linear(changed: dict, says: str) -> None:
    linear()
    with pytest.raises(ValueError, match=f"^int8_linear: .*{says}"):
        linear(**changed)


@pytest.mark.parametrize(("changed", "says"), SHARED[1:] + GEOMETRY + CONV)
def test_int8_conv2d(changed: dict, says: str) -> None:
    conv()
    with pytest.raises(ValueError, match=f"^int8_conv2d: .*({says})"):
        conv(**changed)


@pytest.mark.parametrize(("changed", "says"), SHARED[1:] + GEOMETRY[1:] + SPARSE)
def test_sparse_int8_conv2d(changed: dict, says: str) -> None:
    sparse()
    with pytest.raises(ValueError, match=f"^sparse_int8_conv2d: .*({says})"):
        sparse(**changed)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((torch.ones(3, dtype=torch.float64), torch.ones(1)), "x is torch.float64"),
        ((torch.ones(3), torch.ones(2)), "scale has 2 elements"),
        ((torch.ones(3), torch.tensor([-1.0])), "scale is -1.0"),
        ((torch.ones(3), torch.tensor([float("nan")])), "scale is nan"),
        ((torch.ones(3), torch.ones(1), Z, torch.int32), "dtype is torch.int32"),
        ((torch.ones(3), torch.ones(1, device="meta")), "scale is on meta"),
    ],
)
def test_quantize_int8(arguments: tuple, says: str) -> None:
    with pytest.raises(ValueError, match=f"^quantize_int8: .*{says}"):
        ops.quantize_int8(*arguments)


def test_quantize_int8_dynamic() -> None:
    with pytest.raises(ValueError, match=r"x has no dimensions, accepted is \[..., K\]"):
        ops.quantize_int8_dynamic(torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"dtype is torch\.int16"):
        ops.quantize_int8_dynamic(torch.ones(3), torch.int16)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"columns": torch.full((72,), 18, dtype=torch.int32)}, "columns reach from 18 to 18, accepted are 0 to 17"),
        ({"columns": torch.full((72,), -1, dtype=torch.int32)}, "columns reach from -1"),
        ({"columns": torch.zeros(72)}, "columns is torch.float32"),
        ({"columns": torch.arange(72, dtype=torch.int32) % 18 // 2 * 2}, "columns go from 0 to 0 within a row"),
        ({"columns": 17 - torch.arange(72, dtype=torch.int32) % 18}, "columns go from 17 to 16 within a row"),
        ({"columns": torch.zeros(9, dtype=torch.int32)}, "do not match"),
        (
            {"row_offsets": torch.tensor([0, 18, 36, 54, 99], dtype=torch.int32)},
            "row_offsets must rise from 0 to the 72",
        ),
        ({"row_offsets": torch.tensor([0, 40, 36, 54, 72], dtype=torch.int32)}, "row_offsets must rise"),
    ],
)
def test_blocks(changed: dict, says: str) -> None:
    values, columns, row_offsets = blocks.to_blocks(q(4, 8, 3, 3), "1x4")
    given = {"values": values, "columns": columns, "row_offsets": row_offsets}
    blocks.check("sparse", **given, width=18)
    with pytest.raises(ValueError, match=says):
        blocks.check("sparse", **(given | changed), width=18)


def test_tiles_that_were_skipped_need_all_three_arguments() -> None:
    tiles, index = torch.zeros(1, 1, 4096, dtype=torch.int8), Z
    accepted = "accepted are packed, or packed, tile_columns and tile_offsets"
    for given in (
        {"tile_columns": index},
        {"packed": tiles, "tile_offsets": index},
        {"tile_columns": index, "tile_offsets": index},
    ):
        with pytest.raises(ValueError, match=f"^x: {' and '.join(given)} given alone; {accepted}"):
            _check.tiles("x", **{"packed": None, "tile_columns": None, "tile_offsets": None} | given)


def test_float_ops() -> None:
    values, columns, row_offsets = blocks.to_blocks(torch.ones(4, 8, 3, 3), "1x4")
    with pytest.raises(ValueError, match="sparse_conv2d: x has C=7"):
        ops.sparse_conv2d(torch.ones(1, 7, 6, 6), values, columns, row_offsets, (3, 3))
    with pytest.raises(ValueError, match=r"values has shape \(18, 2, 8\), accepted are \[blocks, 1, 1\]"):
        ops.sparse_conv2d(torch.ones(1, 8, 6, 6), values.view(-1, 2, 8), columns, row_offsets, (3, 3))
    with pytest.raises(ValueError, match=r"residual is torch\.float16, accepted are torch\.float32"):
        residual = torch.ones(1, 4, 4, 4).half()
        ops.sparse_conv2d(torch.ones(1, 8, 6, 6), values, columns, row_offsets, (3, 3), residual=residual)
    with pytest.raises(ValueError, match=r"values is torch\.float32, accepted are torch\.float16"):
        ops.sparse_conv2d(torch.ones(1, 8, 6, 6).half(), values, columns, row_offsets, (3, 3))
    with pytest.raises(ValueError, match=r"x has shape \(2, 7\), b has \(5, 8\)"):
        ops.int8_linear_weight_only(torch.ones(2, 7), q(5, 8), torch.ones(5))
    with pytest.raises(ValueError, match="pattern is '3x3', accepted are unstructured"):
        blocks.to_blocks(torch.ones(4, 4), "3x3")
    with pytest.raises(ValueError, match="given 6 and 8"):
        blocks.to_blocks(torch.ones(6, 8), "4x4")
