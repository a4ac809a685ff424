"""The reference of `conv_chain`: a machine that takes the steps of a plan, in PyTorch."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from torch import Tensor

from torchaccel.ops import _epilogue, _winograd
from torchaccel.ops._chain_step import CURVES, LANES, SLAB, Kind, Step


def _curved(s: Step, y: Tensor) -> Tensor:
    """The step's activation, where it is more than bounds."""
    return next((_epilogue.activate(y, name) for name, code in CURVES.items() if code == s.activation), y)


class Machine:
    """Runs a plan over the arena of one image, as the kernels do, in PyTorch."""

    def __init__(self, values: Tensor, indices: Tensor, floats: Tensor, arena_bytes: int, x: Tensor, out: Tensor):
        self.values, self.indices, self.floats = values, indices.long(), floats
        self.x, self.out = x, out  # [C, H, W]
        self.depth = 4 if values.dtype == torch.int8 else 1  # channels of a place
        dtype = torch.uint8 if self.depth == 4 else torch.float32
        self.places = torch.zeros(arena_bytes // 4, self.depth, dtype=dtype, device=x.device)

    def _grid(self, at: int, *axes: tuple[int, int]) -> Tensor:
        """Which places lie at bytes `at` and on: (size, bytes from one to the next) of each axis."""
        index = torch.tensor(at // 4, device=self.x.device)
        for size, stride in axes:
            index = index.unsqueeze(-1) + torch.arange(size, device=index.device) * (stride // 4)
        return index

    def _vectors(self, s: Step, at: int, plane: int, pitch: int) -> Tensor:
        """[planes, rows, columns, lanes]: which places a step makes, or adds to them."""
        return self._grid(at, (s.planes, plane), (s.rows, pitch), (s.columns, 4 * LANES), (LANES, 4))

    def _lanes(self, s: Step, stride: tuple[int, int], pitch: int, grid_w: int, block_h: int, block_w: int) -> Tensor:
        """[h, w]: which places of a plane are pixels of image 0."""
        row = torch.arange(s.h, device=self.x.device).unsqueeze(1) * stride[0]
        column = torch.arange(s.w, device=self.x.device) * stride[1]
        lane = row // block_h * grid_w + column // block_w
        return row % block_h * (pitch // 4) + column % block_w * LANES + lane

    def _x_pixels(self, s: Step) -> Tensor:
        lanes = self._lanes(s, (s.stride_h, s.stride_w), s.x_pitch, s.x_grid_w, s.x_block_h, s.x_block_w)
        return self.places[self._grid(s.x, (s.planes, s.x_plane)).view(-1, 1, 1) + lanes]

    def _set_y_pixels(self, s: Step, pixels: Tensor) -> None:
        """[planes, h, w, channels of a place]."""
        lanes = self._lanes(s, (1, 1), s.y_pitch, s.y_grid_w, s.y_block_h, s.y_block_w)
        self.places[self._grid(s.y, (s.planes, s.y_plane)).view(-1, 1, 1) + lanes] = pixels

    def _image(self, s: Step) -> Tensor:
        """[channels, h, w] of x."""
        return self._x_pixels(s).permute(0, 3, 1, 2).flatten(0, 1)[: s.channels]

    def _quantized(self, s: Step) -> Tensor:
        """[4 * planes, h, w] bytes of the tensor outside."""
        if self.x.is_floating_point():
            inverse, low, high = self.floats[s.floats : s.floats + 3]
            steps = torch.nan_to_num(self.x * inverse, nan=0.0, posinf=torch.inf, neginf=-torch.inf)
            q = (steps.clamp(low, high).round() + s.zero_point).to(torch.uint8)
        else:
            q = self.x.view(torch.uint8) ^ (0x80 if s.flip else 0)
        padded = torch.full((4 * s.planes, s.h, s.w), s.zero_point, dtype=torch.uint8, device=q.device)
        padded[: s.channels] = q
        return padded

    def load(self, s: Step) -> None:
        pixels = self._quantized(s) if self.depth == 4 else self.x
        self._set_y_pixels(s, pixels.unflatten(0, (s.planes, self.depth)).permute(0, 2, 3, 1))

    def relane(self, s: Step) -> None:
        self._set_y_pixels(s, self._x_pixels(s))

    def halo(self, s: Step) -> None:
        to, source, row = self.indices[s.offsets : s.offsets + 3 * s.blocks].view(-1, 3).T
        lanes = self.indices[s.lanes + LANES * row.unsqueeze(1) + torch.arange(LANES, device=row.device)]
        planes = self._grid(s.y, (s.planes, s.y_plane)).view(-1, 1, 1)
        taken = self.places[planes + source.unsqueeze(1) // 4 + lanes.clamp(min=0)]
        padding = torch.tensor([s.padding], device=row.device).view(torch.uint8)[:4].view(self.places.dtype)
        made = torch.where(lanes.unsqueeze(-1) < 0, padding, taken)
        self.places[planes + self._grid(0, (LANES, 4)) + to.unsqueeze(1) // 4] = made

    def _int8_weights(self, s: Step) -> tuple[Tensor, Tensor, Tensor]:
        """Of each block of weights its row, its offset, and [rows, 4] values."""
        rows = s.block_rows or 4
        if s.block_rows == 0:
            offsets = self.indices[s.offsets : s.offsets + s.blocks].repeat(s.planes)
            row = torch.arange(s.planes, device=offsets.device).repeat_interleave(s.blocks)
        else:
            bounds = self.indices[s.row_offsets : s.row_offsets + 4 * s.planes // rows + 1]
            offsets = self.indices[s.offsets : s.offsets + int(bounds[-1])]
            row = torch.repeat_interleave(torch.arange(bounds.numel() - 1, device=bounds.device), bounds.diff())
        return row, offsets, self.values[s.values : s.values + offsets.numel() * rows * 4].view(-1, rows, 4)

    def _float_weights(self, s: Step) -> tuple[Tensor, Tensor, Tensor]:
        """Of each weight its row, its offset, and [1, 1] value."""
        bounds = self.indices[s.row_offsets :][: -(-s.planes // SLAB) * s.chunks + 1]
        groups = self.indices[s.starts + 6 * int(bounds[0]) : s.starts + 6 * int(bounds[-1])].view(-1, 6)
        first, steps, channels = groups[:, 0], groups[:, 1], groups[:, 2:]
        group = torch.repeat_interleave(torch.arange(groups.shape[0], device=groups.device), steps)
        step = (first - steps.cumsum(0) + steps)[group] + torch.arange(group.numel(), device=groups.device)
        at = 4 * step.unsqueeze(1) + torch.arange(4, device=groups.device)
        once = torch.ones_like(channels, dtype=torch.bool)
        once[:, 1:] = channels.diff() != 0
        offsets = self.indices[s.offsets + (step.unsqueeze(1).expand(-1, 4) if s.block_rows == 4 else at)]
        kept = once[group]
        return channels[group][kept], offsets[kept], self.values[s.values + at][kept].view(-1, 1, 1)

    def _sums(self, s: Step) -> Tensor:
        """[rows, columns, lanes, channels] float64."""
        row, offsets, values = self._int8_weights(s) if self.depth == 4 else self._float_weights(s)
        rows, channels = values.shape[1], s.planes * self.depth
        taps, tap = offsets.unique(return_inverse=True)
        matrix = torch.zeros(channels // rows, taps.numel(), rows, self.depth, dtype=torch.float64, device=taps.device)
        matrix.index_put_((row, tap), values.double(), accumulate=True)
        weight = matrix.transpose(1, 2).reshape(channels, taps.numel() * self.depth)
        at = self._grid(s.x, (s.rows, s.x_down), (s.columns, s.x_across), (LANES, 4))
        return self.places[at.unsqueeze(-1) + taps // 4].flatten(3).double() @ weight.T

    def _added(self, s: Step) -> Tensor:
        """[rows, columns, lanes, channels] of the residual."""
        at = self._vectors(s, s.residual, s.residual_plane, s.residual_pitch)
        return self.places[at].permute(1, 2, 3, 0, 4).flatten(3)

    def conv(self, s: Step) -> None:
        y = self._int8_outputs(s) if self.depth == 4 else self._float_outputs(s)
        down, across = s.y_pitch // s.spread, 4 * LANES  # of the pixels that an output becomes
        of_place = (s.spread, down), (s.spread, across), (s.planes // s.spread**2, s.y_plane)
        at = self._grid(s.y, *of_place, (s.rows, s.y_pitch), (s.columns, s.spread * across), (LANES, 4)).flatten(0, 2)
        self.places[at] = y.to(self.places.dtype).unflatten(3, (s.planes, self.depth)).permute(3, 0, 1, 2, 4)

    def _int8_outputs(self, s: Step) -> Tensor:
        sums = self._sums(s) + self.indices[s.starts : s.starts + 4 * s.planes]
        inverse, low, high, residual_scale = self.floats[s.floats : s.floats + 4]
        scale, bias = self.floats[s.floats + 4 :][: 8 * s.planes].view(2, -1)
        y = sums.to(torch.float32) * scale + bias
        if s.residual >= 0:
            added = self._added(s).to(torch.int32) - s.residual_zero_point
            y = y + added.to(torch.float32) * residual_scale
        return ((_curved(s, y) * inverse).round().clamp(low, high) + s.zero_point).clamp(0, 255)

    def _float_outputs(self, s: Step) -> Tensor:
        low, high = self.floats[s.floats : s.floats + 2]
        y = self._sums(s) + self.floats[s.floats + 2 : s.floats + 2 + s.planes]
        if s.residual >= 0:
            y = y + self._added(s)
        return _curved(s, y.to(torch.float32).clamp(low, high))

    def transform(self, s: Step) -> None:
        _, b, _ = _winograd.matrices(s.points - _winograd.OUTPUTS + 1)
        phase, strip = torch.arange(s.stride_w).view(-1, 1, 1), torch.arange(s.columns).unsqueeze(1)
        column = (_winograd.OUTPUTS * strip + torch.arange(s.points)) * s.stride_w + phase
        at = self._grid(s.x, (s.planes, s.x_plane), (s.rows, s.x_pitch), (LANES, 4)).view(s.planes, s.rows, 1, 1, 1, -1)
        inside = (column < s.w).to(at.device).unsqueeze(-1)
        x = self.places[at + torch.where(inside, LANES * column.to(at.device).unsqueeze(-1), 0)].squeeze(-1)
        y = torch.einsum("pn,crfsnl->pfcrsl", b.to(x.device), torch.where(inside, x, 0).double())
        of_phase = s.planes * s.y_plane
        planes = (s.points, s.stride_w * of_phase), (s.stride_w, of_phase), (s.planes, s.y_plane)
        to = self._grid(s.y, *planes, (s.rows, s.y_pitch), (s.columns, 4 * LANES), (LANES, 4))
        self.places[to] = y.to(torch.float32).unsqueeze(-1)

    def winograd(self, s: Step) -> None:
        a, _, _ = _winograd.matrices(s.points - _winograd.OUTPUTS + 1)
        at = self._grid(s.x, (s.rows, s.x_down), (s.columns, s.x_across), (LANES, 4)).unsqueeze(-1)
        bounds = self.indices[s.row_offsets : s.row_offsets + s.points * s.chunks + 1].tolist()
        groups, sums = -(-s.planes // 4), []
        for first, end in itertools.pairwise(bounds):
            values = self.values[s.values + 4 * groups * first : s.values + 4 * groups * end].view(groups, -1, 4)
            weight = values.transpose(1, 2).flatten(0, 1)[: s.planes]
            x = self.places[at + self.indices[s.offsets + first : s.offsets + end] // 4].squeeze(-1)
            sums.append(x.double() @ weight.double().T)
        y = torch.einsum("ip,pqrclo->orcil", a.to(at.device), torch.stack(sums).unflatten(0, (s.points, s.chunks)))
        y = y.reshape(s.planes, -1, s.x_pitch // (4 * LANES) * _winograd.OUTPUTS, LANES)[:, :, : s.y_block_w]
        y = y + self.floats[s.floats + 2 : s.floats + 2 + s.planes].view(-1, 1, 1, 1)
        block = replace(s, rows=s.y_block_h, columns=s.y_block_w)
        if s.residual >= 0:
            y = y + self._added(block).permute(3, 0, 1, 2)
        low, high = self.floats[s.floats : s.floats + 2]
        at = self._vectors(block, s.y, s.y_plane, s.y_pitch)
        self.places[at] = _curved(s, y.to(torch.float32).clamp(low, high)).unsqueeze(-1)

    def max_pool(self, s: Step) -> None:
        taps = self.indices[s.offsets : s.offsets + s.blocks] // 4
        at = self._grid(s.x, (s.planes, s.x_plane), (s.rows, s.x_down), (s.columns, s.x_across), (LANES, 4))
        largest = self.places[at.unsqueeze(-1) + taps].amax(-2)
        self.places[self._vectors(s, s.y, s.y_plane, s.y_pitch)] = largest

    def average(self, s: Step) -> None:
        self.out[:, 0, 0] = self._int8_average(s) if self.depth == 4 else self._image(s).mean((1, 2))

    def _int8_average(self, s: Step) -> Tensor:
        scale, inverse, low, high = self.floats[s.floats : s.floats + 4]
        sums = self._image(s).sum((1, 2), dtype=torch.int32) - s.residual_zero_point * s.h * s.w
        y = sums.to(torch.float32) * scale
        if self.out.is_floating_point():
            return y
        q = ((y * inverse).clamp(low, high).round() + s.zero_point).to(torch.uint8)
        return (q ^ (0x80 if s.flip else 0)).view(self.out.dtype)

    def store(self, s: Step) -> None:
        pixels = self._image(s)
        self.out.copy_((pixels ^ (0x80 if s.flip else 0)).view(self.out.dtype) if self.depth == 4 else pixels)

    def step(self, s: Step) -> None:
        getattr(self, Kind(s.kind).name.lower())(s)
