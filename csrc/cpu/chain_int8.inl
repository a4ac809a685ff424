// Convolutions of an int8 chain: 16 output places in a vector, weights broadcast; see chain.h for the layout.
//
// A task is one tile (up to `tile` vectors of places) of four output channels. Blocks of 1x4 weights go channel by
// channel, one broadcast and a load and a dot product for each vector; blocks of 4x4, pruned or not, share each load
// between four channels. The sums begin at -zero_point * colsum and are requantized in registers: four channels make
// the four bytes of a place, so nothing is transposed. Roofline: 1x4 by loads, 4x4 and dense by dot products.
#pragma once

#include "epilogue.inl"

// Accumulators stay in registers only where every loop over them is unrolled, which GCC leaves off where it is long.
#ifdef __clang__
#define TORCHACCEL_UNROLL _Pragma("unroll")
#else
#define TORCHACCEL_UNROLL _Pragma("GCC unroll 8")
#endif

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
  F32 inverse, residual_scale;
  I32 residual_shift;
  Pair low, high, zero_point;  // of steps
  I32 zero_word;               // the zero point in each of four bytes
};

// The steps from the zero point of sums of one channel: (float(sum) * scale + bias + residual) / scale_out. The plan
// makes sure that they fit an int32, and activations are bounds of steps.
template <bool kResidual>
TORCHACCEL_INLINE I32 chain_steps(const ChainOut& out, I32 sum, F32 scale, F32 bias, X added, W which) {
  F32 y = f32_add(f32_mul(f32_of(sum), scale), bias);
  if (kResidual) y = f32_add(y, f32_mul(f32_of(dot4(out.residual_shift, added, which)), out.residual_scale));
  return i32_round(f32_mul(y, out.inverse));
}

// Stores the bytes of a vector of places; those that are no pixels get the zero point.
TORCHACCEL_INLINE void chain_store(const ChainOut& out, uint8_t* y, Pair first, Pair last, int32_t mask) {
  const I32 bytes = i32_bytes(first, last, out.low, out.high, out.zero_point);
  i32_store(reinterpret_cast<int32_t*>(y), i32_select(mask, bytes, out.zero_word));
}

// The zero point before and after a plane's vectors.
TORCHACCEL_INLINE void chain_surround(const ChainStep& s, uint8_t* y, bool before, bool after) {
  const int zero_point = static_cast<int>(s.zero_point);
  if (before && s.y_lead > 0) memset(y - s.y_lead, zero_point, static_cast<size_t>(s.y_lead));
  if (after && s.y_tail > 0) memset(y + 64 * s.vectors, zero_point, static_cast<size_t>(s.y_tail));
}

// Four channels, each over its own blocks: as soon as a channel's sums are known they become bytes, in registers. Two
// sets of few accumulators hide the latency of a product.
template <int V, bool kResidual>
static void chain_1x4(const ChainTile& t, const ChainOut& out, const int8_t* values, const int32_t* offsets,
                      const int32_t* rows) {
  constexpr int kSets = V <= 4 && 2 * V <= kAccumulators ? 2 : 1;
  I32 even[V];       // steps of channel 0, then 2
  Pair first[V];     // of channels 0 and 1
  TORCHACCEL_UNROLL  // a branch of its own for the end of each row is predicted better
      for (int c = 0; c < 4; ++c) {
    I32 sums[kSets][V];
    TORCHACCEL_UNROLL
    for (int s = 0; s < kSets; ++s) {
      TORCHACCEL_UNROLL
      for (int v = 0; v < V; ++v) sums[s][v] = i32_splat(s == 0 ? out.starts[c] : 0);
    }
    const int64_t end = rows[c + 1];
    int64_t i = rows[c];
    for (; i + kSets <= end; i += kSets) {
      TORCHACCEL_UNROLL
      for (int s = 0; s < kSets; ++s) {
        const W weights = w_splat(load_word(values + 4 * (i + s)));
        const uint8_t* from = t.x + offsets[i + s];
        TORCHACCEL_UNROLL
        for (int v = 0; v < V; ++v) sums[s][v] = dot4(sums[s][v], x_load(from + 64 * v), weights);
      }
    }
    if (kSets == 2 && i < end) {
      const W weights = w_splat(load_word(values + 4 * i));
      const uint8_t* from = t.x + offsets[i];
      TORCHACCEL_UNROLL
      for (int v = 0; v < V; ++v) sums[0][v] = dot4(sums[0][v], x_load(from + 64 * v), weights);
    }
    const F32 scale = f32_splat(out.scale[c]), bias = f32_splat(out.bias[c]);
    const W which = w_splat(1 << 8 * c);
    TORCHACCEL_UNROLL
    for (int v = 0; v < V; ++v) {
      const I32 sum = kSets == 2 ? i32_add(sums[0][v], sums[kSets - 1][v]) : sums[0][v];
      const X added = x_load(t.residual + 64 * v);
      const I32 steps = chain_steps<kResidual>(out, sum, scale, bias, added, which);
      if (c % 2 == 0) {
        even[v] = steps;
      } else if (c == 1) {
        first[v] = pair(even[v], steps);
      } else {
        chain_store(out, t.y + 64 * v, first[v], pair(even[v], steps), t.masks[v]);
      }
    }
  }
}

// sums [4][V * 16] of four channels over `count` blocks.
template <int V>
TORCHACCEL_INLINE void chain_sums_4x4(const uint8_t* x, const int8_t* values, const int32_t* offsets, int64_t count,
                                      int32_t* out) {
  I32 sums[4][V];
  TORCHACCEL_UNROLL
  for (int c = 0; c < 4; ++c) {
    TORCHACCEL_UNROLL
    for (int v = 0; v < V; ++v) sums[c][v] = i32_splat(0);
  }
  for (int64_t i = 0; i < count; ++i, values += 16) {
    const uint8_t* from = x + offsets[i];
    X here[V];
    TORCHACCEL_UNROLL
    for (int v = 0; v < V; ++v) here[v] = x_load(from + 64 * v);
    TORCHACCEL_UNROLL
    for (int c = 0; c < 4; ++c) {
      const W weights = w_splat(load_word(values + 4 * c));
      TORCHACCEL_UNROLL
      for (int v = 0; v < V; ++v) sums[c][v] = dot4(sums[c][v], here[v], weights);
    }
  }
  TORCHACCEL_UNROLL
  for (int c = 0; c < 4; ++c) {
    TORCHACCEL_UNROLL
    for (int v = 0; v < V; ++v) i32_store(out + 16 * (c * V + v), sums[c][v]);
  }
}

template <int V, bool kResidual>
static void chain_4x4(const ChainTile& t, const ChainOut& out, const int8_t* values, const int32_t* offsets,
                      int64_t count) {
  // Through memory: where sums come in registers, GCC moves each accumulator twice in every iteration of their loop.
  alignas(64) int32_t sums[4 * V * 16];
  chain_sums_4x4<V>(t.x, values, offsets, count, sums);
  asm volatile("" ::: "memory");
  for (int v = 0; v < V; ++v) {
    const X added = x_load(t.residual + 64 * v);
    I32 steps[4];
    TORCHACCEL_UNROLL
    for (int c = 0; c < 4; ++c) {
      const I32 sum = i32_add(i32_splat(out.starts[c]), i32_load(sums + 16 * (c * V + v)));
      const F32 scale = f32_splat(out.scale[c]), bias = f32_splat(out.bias[c]);
      steps[c] = chain_steps<kResidual>(out, sum, scale, bias, added, w_splat(1 << 8 * c));
    }
    chain_store(out, t.y + 64 * v, pair(steps[0], steps[1]), pair(steps[2], steps[3]), t.masks[v]);
  }
}

// V vectors of places of a plane.
template <int V, bool kResidual>
TORCHACCEL_INLINE void chain_plane_of(const ChainStep& s, const ChainData& d, const ChainTile& t, const ChainOut& out,
                                      int64_t plane) {
  const int8_t* values = d.values + s.values;
  const int32_t *offsets = d.indices + s.offsets, *rows = d.indices + s.row_offsets;
  if (s.block_rows == 1) {
    chain_1x4<V, kResidual>(t, out, values, offsets, rows + 4 * plane);
  } else if (s.block_rows == 4) {
    const int64_t from = rows[plane];
    chain_4x4<V, kResidual>(t, out, values + 16 * from, offsets + from, rows[plane + 1] - from);
  } else {
    chain_4x4<V, kResidual>(t, out, values + 16 * s.blocks * plane, offsets, s.blocks);
  }
}

template <int V>
static void chain_plane(const ChainStep& s, const ChainData& d, const ChainTile& t, const ChainOut& out,
                        int64_t plane) {
  if (s.residual >= 0) {
    chain_plane_of<V, true>(s, d, t, out, plane);
  } else {
    chain_plane_of<V, false>(s, d, t, out, plane);
  }
}

static void chain_plane(const ChainStep& s, const ChainData& d, const ChainTile& tile, const ChainOut& out,
                        int64_t plane, int64_t vectors) {
  constexpr int kMost = kChainVectors1 > kChainVectors4 ? kChainVectors1 : kChainVectors4;
  const int64_t most = s.block_rows == 1 ? kChainVectors1 : kChainVectors4, parts = (vectors + most - 1) / most;
  for (int64_t p = 0, v = 0; p < parts; ++p) {
    const int64_t next = vectors * (p + 1) / parts;  // parts of about the same size
    const ChainTile t = {tile.x + 64 * v, tile.residual + 64 * v, tile.y + 64 * v, tile.masks + v};
    switch (next - v) {
      case 1:
        chain_plane<1>(s, d, t, out, plane);
        break;
      case 2:
        chain_plane<2>(s, d, t, out, plane);
        break;
      case 3:
        chain_plane<kMost >= 3 ? 3 : 1>(s, d, t, out, plane);
        break;
      case 4:
        chain_plane<kMost >= 4 ? 4 : 1>(s, d, t, out, plane);
        break;
      case 5:
        chain_plane<kMost >= 5 ? 5 : 1>(s, d, t, out, plane);
        break;
      case 6:
        chain_plane<kMost >= 6 ? 6 : 1>(s, d, t, out, plane);
        break;
      case 7:
        chain_plane<kMost >= 7 ? 7 : 1>(s, d, t, out, plane);
        break;
      case 8:
        chain_plane<kMost >= 8 ? 8 : 1>(s, d, t, out, plane);
        break;
    }
    v = next;
  }
}

// Tasks [begin, end) of tiles x planes.
static void chain_conv(const ChainStep& s, const ChainData& d, int64_t begin, int64_t end) {
  const int64_t tiles = (s.vectors + s.tile - 1) / s.tile;
  const float* floats = d.floats + s.floats;
  ChainOut out;
  out.inverse = f32_splat(floats[0]);
  out.low = pair_splat(static_cast<int32_t>(floats[1]));
  out.high = pair_splat(static_cast<int32_t>(floats[2]));
  out.zero_point = pair_splat(static_cast<int32_t>(s.zero_point));
  out.residual_scale = f32_splat(floats[3]);
  out.residual_shift = i32_splat(static_cast<int32_t>(-s.residual_zero_point));
  out.zero_word = i32_splat(static_cast<int32_t>(s.zero_point * 0x01010101));
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
    if (s.residual >= 0) t.residual = d.arena + s.residual + plane * s.residual_plane + 64 * first;
    chain_plane(s, d, t, out, plane, vectors);
  }
}
