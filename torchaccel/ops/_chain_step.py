"""What a plan of `conv_chain` is made of; see csrc/cpu/chain.h."""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields
from enum import IntEnum

LANES = 16
"""Places of a vector, 4 bytes each."""
SLAB = 256
"""Output channels that are one task of a float32 convolution."""
TILE = 7
"""Vectors of a row that it computes together, at most."""
WINOGRAD_SLAB = 64
"""Output channels that are one task of Winograd's convolution."""
MOST_POINTS = 7
"""At which it multiplies, at most."""
SCRATCH = MOST_POINTS * WINOGRAD_SLAB * TILE * 4 * LANES
"""Bytes for the sums of such a task."""


class Kind(IntEnum):
    """What a step does."""

    LOAD = 0
    RELANE = 1
    HALO = 2
    CONV = 3
    MAX_POOL = 4
    AVERAGE = 5
    STORE = 6
    TRANSFORM = 7
    WINOGRAD = 8


CURVES = {"gelu": 3, "silu": 4}
"""Activations that are more than bounds, as `Activation` in csrc/cpu/kernels.h numbers them."""


@dataclass
class Step:
    """One step of a plan; the fields and their order are those of `ChainStep` in csrc/cpu/chain.h."""

    kind: int
    x: int = 0
    x_plane: int = 0
    x_pitch: int = 0
    y: int = 0
    y_plane: int = 0
    y_pitch: int = 0
    residual: int = -1
    residual_plane: int = 0
    residual_pitch: int = 0
    planes: int = 0
    h: int = 0
    w: int = 0
    channels: int = 0
    rows: int = 0
    columns: int = 0
    x_down: int = 0
    x_across: int = 0
    x_images: int = 1
    x_grid_h: int = 1
    x_grid_w: int = 1
    x_block_h: int = 1
    x_block_w: int = 1
    y_images: int = 1
    y_grid_h: int = 1
    y_grid_w: int = 1
    y_block_h: int = 1
    y_block_w: int = 1
    tile: int = 1
    block_rows: int = 0
    blocks: int = 0
    chunks: int = 0
    values: int = 0
    offsets: int = 0
    row_offsets: int = 0
    starts: int = 0
    lanes: int = 0
    floats: int = 0
    zero_point: int = 0
    residual_zero_point: int = 0
    flip: int = 0
    padding: int = 0
    stride_h: int = 1
    stride_w: int = 1
    points: int = 0
    quads: int = -1
    quad_offsets: int = 0
    kernel_h: int = 0
    kernel_w: int = 0
    spread: int = 1
    activation: int = 0

    def ints(self) -> tuple[int, ...]:
        return astuple(self)


STEP_INTS = len(fields(Step))
