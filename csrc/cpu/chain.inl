// Convolutions of an int8 chain: 16 output places in a vector, weights broadcast; see chain.h for the layout.
//
// A task is one tile (up to `tile` vectors of places) of four output channels. Blocks of 1x4 weights go channel by
// channel, one broadcast and a load and a dot product for each vector; blocks of 4x4, pruned or not, share each load
// between four channels. The sums begin at -zero_point * colsum and are requantized in registers: four channels make
// the four bytes of a place, so nothing is transposed. Roofline: 1x4 by loads, 4x4 and dense by dot products.
#pragma once

#include "epilogue.inl"

struct ChainTile {
  const uint8_t* x;         // the input at the tile's first place, plane 0
  const uint8_t* residual;  // at the tile's first place, this plane
  uint8_t* y;
  const int32_t* masks;  // of the tile's vectors
};

// What requantizes four channels.
struct ChainOut {
  const int32_t* starts;
  const float *scale, *bias;
  F32 inverse, low, high, residual_scale;
  I32 residual_shift;
  int32_t zero_word;  // the zero point in each of four bytes
};

// The steps from the zero point of sums of channel c: act(float(sum) * scale + bias + residual) / scale_out.
template <bool kResidual>
TORCHACCEL_INLINE I32 chain_steps(const ChainOut& out, I32 sum, F32 scale, F32 bias, X added, W which) {
  F32 y = f32_add(f32_mul(f32_of(sum), scale), bias);
  if (kResidual) {
    y = f32_add(y, f32_mul(f32_of(dot4(out.residual_shift, added, which)), out.residual_scale));
  }
  return i32_round(f32_min(out.high, f32_max(out.low, f32_mul(y, out.inverse))));
}

// Stores the bytes of a vector of places; those that are no pixels get the zero point.
TORCHACCEL_INLINE void chain_store(const ChainOut& out, uint8_t* y, I32 packed, int32_t mask) {
  const I32 zero = i32_splat(out.zero_word);
  i32_store(reinterpret_cast<int32_t*>(y), i32_select(mask, i32_add(packed, zero), zero));
}

// The zero point before and after a plane's vectors.
TORCHACCEL_INLINE void chain_surround(const ChainStep& s, uint8_t* y, bool before, bool after) {
  const int zero_point = static_cast<int>(s.zero_point);
  if (before && s.y_lead > 0) memset(y - s.y_lead, zero_point, static_cast<size_t>(s.y_lead));
  if (after && s.y_tail > 0) memset(y + 64 * s.vectors, zero_point, static_cast<size_t>(s.y_tail));
}

template <int V, bool kResidual>
static void chain_1x4(const ChainTile& t, const ChainOut& out, const int8_t* values, const int32_t* offsets,
                      const int32_t* row_offsets) {
  constexpr int kSets = 2 * V <= 8 && 2 * V <= kAccumulators ? 2 : 1;
  I32 packed[V];
  for (int v = 0; v < V; ++v) packed[v] = i32_splat(0);
  for (int c = 3; c >= 0; --c) {
    int64_t i = row_offsets[c];
    const int64_t end = row_offsets[c + 1];
    I32 sums[kSets][V];
    for (int v = 0; v < V; ++v) sums[0][v] = i32_splat(out.starts[c]);
    for (int s = 1; s < kSets; ++s) {
      for (int v = 0; v < V; ++v) sums[s][v] = i32_splat(0);
    }
    for (; i + kSets <= end; i += kSets) {
      for (int s = 0; s < kSets; ++s) {
        const W weights = w_splat(load_word(values + 4 * (i + s)));
        const uint8_t* from = t.x + offsets[i + s];
        for (int v = 0; v < V; ++v) sums[s][v] = dot4(sums[s][v], x_load(from + 64 * v), weights);
      }
    }
    if (kSets == 2 && i < end) {
      const W weights = w_splat(load_word(values + 4 * i));
      const uint8_t* from = t.x + offsets[i];
      for (int v = 0; v < V; ++v) sums[0][v] = dot4(sums[0][v], x_load(from + 64 * v), weights);
    }
    const F32 scale = f32_splat(out.scale[c]), bias = f32_splat(out.bias[c]);
    const W which = w_splat(1 << 8 * c);
    for (int v = 0; v < V; ++v) {
      const I32 sum = kSets == 2 ? i32_add(sums[0][v], sums[kSets - 1][v]) : sums[0][v];
      const X added = x_load(t.residual + 64 * v);
      packed[v] = i32_add(i32_shl8(packed[v]), chain_steps<kResidual>(out, sum, scale, bias, added, which));
    }
  }
  for (int v = 0; v < V; ++v) chain_store(out, t.y + 64 * v, packed[v], t.masks[v]);
}

template <int V, bool kResidual>
static void chain_4x4(const ChainTile& t, const ChainOut& out, const int8_t* values, const int32_t* offsets,
                      int64_t count) {
  I32 sums[4][V];
  for (int c = 0; c < 4; ++c) {
    for (int v = 0; v < V; ++v) sums[c][v] = i32_splat(out.starts[c]);
  }
  for (int64_t i = 0; i < count; ++i) {
    const uint8_t* from = t.x + offsets[i];
    X x[V];
    for (int v = 0; v < V; ++v) x[v] = x_load(from + 64 * v);
    for (int c = 0; c < 4; ++c) {
      const W weights = w_splat(load_word(values + 16 * i + 4 * c));
      for (int v = 0; v < V; ++v) sums[c][v] = dot4(sums[c][v], x[v], weights);
    }
  }
  I32 packed[V];
  for (int v = 0; v < V; ++v) packed[v] = i32_splat(0);
  for (int c = 3; c >= 0; --c) {
    const F32 scale = f32_splat(out.scale[c]), bias = f32_splat(out.bias[c]);
    const W which = w_splat(1 << 8 * c);
    for (int v = 0; v < V; ++v) {
      const X added = x_load(t.residual + 64 * v);
      packed[v] = i32_add(i32_shl8(packed[v]), chain_steps<kResidual>(out, sums[c][v], scale, bias, added, which));
    }
  }
  for (int v = 0; v < V; ++v) chain_store(out, t.y + 64 * v, packed[v], t.masks[v]);
}

// V vectors of places, in steps that the register file holds.
template <int V, bool kResidual>
static void chain_group(const ChainStep& s, const ChainData& d, const ChainTile& t, const ChainOut& out,
                        int64_t plane) {
  if (s.block_rows == 1) {
    constexpr int kStep = V <= kChainVectors1 ? V : kChainVectors1;
    const int32_t* row_offsets = d.indices + s.row_offsets + 4 * plane;
    for (int v = 0; v < V; v += kStep) {
      const ChainTile part = {t.x + 64 * v, t.residual + 64 * v, t.y + 64 * v, t.masks + v};
      const int8_t* values = d.values + s.values;
      const int32_t* offsets = d.indices + s.offsets;
      if (V % kStep != 0 && V - v < kStep) {
        chain_1x4<(V % kStep != 0 ? V % kStep : 1), kResidual>(part, out, values, offsets, row_offsets);
      } else {
        chain_1x4<kStep, kResidual>(part, out, values, offsets, row_offsets);
      }
    }
  } else {
    constexpr int kStep = V <= kChainVectors4 ? V : kChainVectors4;
    const bool dense = s.block_rows == 0;
    const int32_t* rows = d.indices + s.row_offsets + plane;
    const int64_t from = dense ? plane * s.blocks : rows[0], count = dense ? s.blocks : rows[1] - rows[0];
    const int8_t* values = d.values + s.values + 16 * from;
    const int32_t* offsets = d.indices + s.offsets + (dense ? 0 : from);
    for (int v = 0; v < V; v += kStep) {
      const ChainTile part = {t.x + 64 * v, t.residual + 64 * v, t.y + 64 * v, t.masks + v};
      if (V % kStep != 0 && V - v < kStep) {
        chain_4x4<(V % kStep != 0 ? V % kStep : 1), kResidual>(part, out, values, offsets, count);
      } else {
        chain_4x4<kStep, kResidual>(part, out, values, offsets, count);
      }
    }
  }
}

template <bool kResidual>
static void chain_group(const ChainStep& s, const ChainData& d, const ChainTile& t, const ChainOut& out, int64_t plane,
                        int64_t vectors) {
  switch (vectors) {
    case 1:
      return chain_group<1, kResidual>(s, d, t, out, plane);
    case 2:
      return chain_group<2, kResidual>(s, d, t, out, plane);
    case 3:
      return chain_group<3, kResidual>(s, d, t, out, plane);
    case 4:
      return chain_group<4, kResidual>(s, d, t, out, plane);
    case 5:
      return chain_group<5, kResidual>(s, d, t, out, plane);
    case 6:
      return chain_group<6, kResidual>(s, d, t, out, plane);
    case 7:
      return chain_group<7, kResidual>(s, d, t, out, plane);
    default:
      return chain_group<8, kResidual>(s, d, t, out, plane);
  }
}

// Tasks [begin, end) of tiles x planes.
static void chain_conv(const ChainStep& s, const ChainData& d, int64_t begin, int64_t end) {
  const int64_t tiles = (s.vectors + s.tile - 1) / s.tile;
  const float* floats = d.floats + s.floats;
  ChainOut out;
  out.inverse = f32_splat(floats[0]);
  out.low = f32_splat(floats[1]);
  out.high = f32_splat(floats[2]);
  out.residual_scale = f32_splat(floats[3]);
  out.residual_shift = i32_splat(static_cast<int32_t>(-s.residual_zero_point));
  out.zero_word = static_cast<int32_t>(s.zero_point * 0x01010101);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t tile = task / s.planes, plane = task % s.planes;
    // Tiles of about the same size.
    const int64_t first = s.vectors * tile / tiles, vectors = s.vectors * (tile + 1) / tiles - first;
    out.starts = d.indices + s.starts + 4 * plane;
    out.scale = floats + 4 + 4 * plane;
    out.bias = floats + 4 + 4 * (s.planes + plane);
    uint8_t* y = d.arena + s.y + plane * s.y_plane;
    chain_surround(s, y, tile == 0, tile == tiles - 1);
    ChainTile t = {d.arena + s.x + 64 * first, d.arena, y + 64 * first, d.indices + s.masks + first};
    if (s.residual >= 0) {
      t.residual = d.arena + s.residual + plane * s.residual_plane + 64 * first;
      chain_group<true>(s, d, t, out, plane, vectors);
    } else {
      chain_group<false>(s, d, t, out, plane, vectors);
    }
  }
}
