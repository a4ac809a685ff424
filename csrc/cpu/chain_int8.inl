// Convolutions of an int8 chain: 16 places in a vector, weights broadcast; see chain.h for the layout.
//
// A task is one tile (up to `tile` vectors of a row) of four output channels. Blocks of 1x4 weights go channel by
// channel, one broadcast and a load and a dot product for each vector; blocks of 4x4, pruned or not, share each load
// between four channels. The sums begin at -zero_point * colsum and are requantized in registers: four channels make
// the four bytes of a place, so nothing is transposed. Roofline: 1x4 by loads, 4x4 and dense by dot products.
#pragma once

#include "chain_quads.inl"

// Four channels, each over its own blocks: as soon as a channel's sums are known they become steps, in registers. Two
// sets of few accumulators hide the latency of a product.
template <int V, int kAcross, ChainFinish kFinish>
static void chain_1x4(const ChainTile& t, const ChainOut& out, const int8_t* values, const int32_t* offsets,
                      const int32_t* rows) {
  constexpr int kSets = V <= 4 && 2 * V <= kAccumulators ? 2 : 1;
  const int64_t across = kAcross > 0 ? kAcross : t.across, y_across = kAcross > 0 ? 64 : t.y_across;
  I32 even[V];    // steps of channel 0, then 2
  Pair first[V];  // of channels 0 and 1
  // A branch of its own for the end of each row is predicted better.
  TORCHACCEL_UNROLL for (int c = 0; c < 4; ++c) {
    I32 sums[kSets][V];
    TORCHACCEL_UNROLL for (int k = 0; k < kSets; ++k) {
      TORCHACCEL_UNROLL for (int v = 0; v < V; ++v) sums[k][v] = i32_splat(k == 0 ? out.starts[c] : 0);
    }
    const int64_t end = rows[c + 1];
    int64_t i = rows[c];
    int64_t next[kSets];  // offsets are read a step ahead: behind the loads of vectors they would come too late
    TORCHACCEL_UNROLL for (int k = 0; k < kSets; ++k) next[k] = offsets[i + k];
    for (; i + kSets <= end; i += kSets) {
      TORCHACCEL_UNROLL for (int k = 0; k < kSets; ++k) {
        const W weights = w_splat(load_word(values + 4 * (i + k)));
        const uint8_t* from = t.x + next[k];
        next[k] = offsets[i + kSets + k];
        asm volatile("" : "+r"(next[k]));  // keeps the load here
        TORCHACCEL_UNROLL for (int v = 0; v < V; ++v) sums[k][v] = dot4(sums[k][v], x_load(from + v * across), weights);
      }
    }
    if (kSets == 2 && i < end) {
      const W weights = w_splat(load_word(values + 4 * i));
      const uint8_t* from = t.x + offsets[i];
      TORCHACCEL_UNROLL for (int v = 0; v < V; ++v) sums[0][v] = dot4(sums[0][v], x_load(from + v * across), weights);
    }
    TORCHACCEL_UNROLL for (int k = 0; k < kSets; ++k) {
      TORCHACCEL_UNROLL for (int v = 0; v < V; ++v) i32_pin(sums[k][v]);
    }
    const F32 scale = f32_splat(out.scale[c]), bias = f32_splat(out.bias[c]);
    const W which = w_splat(1 << 8 * c);
    TORCHACCEL_UNROLL for (int v = 0; v < V; ++v) {
      const I32 sum = kSets == 2 ? i32_add(sums[0][v], sums[kSets - 1][v]) : sums[0][v];
      const X added = x_load(t.residual + 64 * v);
      const I32 steps = chain_steps<kFinish>(out, sum, scale, bias, added, which);
      if (c % 2 == 0) {
        even[v] = steps;
      } else if (c == 1) {
        first[v] = pair(even[v], steps);
      } else {
        chain_store(out, t.y + y_across * v, first[v], pair(even[v], steps));
      }
    }
  }
}

// Four channels over the same blocks.
template <int V, int kAcross, ChainFinish kFinish>
static void chain_4x4(const ChainTile& tile, const ChainOut& given, const int8_t* values, const int32_t* offsets,
                      int64_t count) {
  // Copies: a store of bytes might change what a reference leads to.
  const ChainTile t = tile;
  const ChainOut out = given;
  const int64_t across = kAcross > 0 ? kAcross : t.across, y_across = kAcross > 0 ? 64 : t.y_across;
  I32 sums[4][V];
  TORCHACCEL_UNROLL for (int c = 0; c < 4; ++c) {
    TORCHACCEL_UNROLL for (int v = 0; v < V; ++v) sums[c][v] = i32_splat(out.starts[c]);
  }
  for (int64_t i = 0; i < count; ++i, values += 16) {
    const uint8_t* from = t.x + offsets[i];
    X here[V];
    TORCHACCEL_UNROLL for (int v = 0; v < V; ++v) here[v] = x_load(from + v * across);
    TORCHACCEL_UNROLL for (int c = 0; c < 4; ++c) {
      const W weights = w_splat(load_word(values + 4 * c));
      TORCHACCEL_UNROLL for (int v = 0; v < V; ++v) sums[c][v] = dot4(sums[c][v], here[v], weights);
    }
  }
  TORCHACCEL_UNROLL for (int c = 0; c < 4; ++c) { TORCHACCEL_UNROLL for (int v = 0; v < V; ++v) i32_pin(sums[c][v]); }
  F32 scale[4], bias[4];
  TORCHACCEL_UNROLL for (int c = 0; c < 4; ++c) scale[c] = f32_splat(out.scale[c]), bias[c] = f32_splat(out.bias[c]);
  TORCHACCEL_UNROLL for (int v = 0; v < V; ++v) {
    const X added = x_load(t.residual + 64 * v);
    I32 steps[4];
    TORCHACCEL_UNROLL for (int c = 0; c < 4; ++c) {
      steps[c] = chain_steps<kFinish>(out, sums[c][v], scale[c], bias[c], added, w_splat(1 << 8 * c));
    }
    chain_store(out, t.y + y_across * v, pair(steps[0], steps[1]), pair(steps[2], steps[3]));
  }
}

// V vectors of a plane.
template <int kBlockRows, int V, int kAcross, ChainFinish kFinish>
TORCHACCEL_INLINE void chain_vectors(const ChainStep& s, const ChainData& d, const ChainTile& t, const ChainOut& out,
                                     int64_t plane) {
  const int8_t* values = static_cast<const int8_t*>(d.values) + s.values;
  const int32_t *offsets = d.indices + s.offsets, *rows = d.indices + s.row_offsets;
  if (kBlockRows == 1) {
    chain_1x4<V, kAcross, kFinish>(t, out, values, offsets, rows + 4 * plane);
  } else if (s.block_rows == 4) {
    const int64_t from = rows[plane];
    chain_4x4<V, kAcross, kFinish>(t, out, values + 16 * from, offsets + from, rows[plane + 1] - from);
  } else {
    chain_4x4<V, kAcross, kFinish>(t, out, values + 16 * s.blocks * plane, offsets, s.blocks);
  }
}

template <int kBlockRows, int V, ChainFinish kFinish>
TORCHACCEL_INLINE void chain_vectors(const ChainStep& s, const ChainData& d, const ChainTile& t, const ChainOut& out,
                                     int64_t plane) {
  const bool adjacent = t.across == 64 && t.y_across == 64;
  adjacent ? chain_vectors<kBlockRows, V, 64, kFinish>(s, d, t, out, plane)
           : chain_vectors<kBlockRows, V, 0, kFinish>(s, d, t, out, plane);
}

// Apart, so that the others are inlined as if it were not there.
template <int kBlockRows, int V>
static __attribute__((noinline)) void chain_curved_vectors(const ChainStep& s, const ChainData& d, const ChainTile& t,
                                                           const ChainOut& out, int64_t plane) {
  chain_vectors<kBlockRows, V, ChainFinish::kCurved>(s, d, t, out, plane);
}

// `vectors` of a plane, V or fewer.
template <int kBlockRows, int V>
static void chain_vectors(const ChainStep& s, const ChainData& d, const ChainTile& t, const ChainOut& out,
                          int64_t plane, int64_t vectors) {
  if constexpr (V > 1) {
    if (vectors < V) return chain_vectors<kBlockRows, V - 1>(s, d, t, out, plane, vectors);
  }
  if (s.activation != 0) return chain_curved_vectors<kBlockRows, V>(s, d, t, out, plane);
  if (s.residual >= 0) return chain_vectors<kBlockRows, V, ChainFinish::kResidual>(s, d, t, out, plane);
  chain_vectors<kBlockRows, V, ChainFinish::kPlain>(s, d, t, out, plane);
}

// A tile of a plane, in parts that registers hold.
template <int kBlockRows, int V>
TORCHACCEL_INLINE void chain_tile(const ChainStep& s, const ChainData& d, const ChainTile& t, const ChainOut& out,
                                  int64_t plane, int64_t vectors) {
  const int64_t parts = (vectors + V - 1) / V;
  for (int64_t p = 0; p < parts; ++p) {
    const int64_t first = vectors * p / parts, count = vectors * (p + 1) / parts - first;  // of about the same size
    const ChainTile part = {t.x + first * t.across, t.across, t.residual + 64 * first, t.y + first * t.y_across,
                            t.y_across};
    chain_vectors<kBlockRows, V>(s, d, part, out, plane, count);
  }
}

// Tasks [begin, end) of tiles x planes.
static void chain_conv_int8(const ChainStep& s, const ChainData& d, int64_t begin, int64_t end) {
  const int64_t parts = (s.columns + s.tile - 1) / s.tile;  // of a row
  const float* floats = d.floats + s.floats;
  ChainOut out;
  out.inverse = f32_splat(floats[0]);
  out.low = pair_splat(static_cast<int32_t>(floats[1]));
  out.high = pair_splat(static_cast<int32_t>(floats[2]));
  out.zero_point = pair_splat(static_cast<int32_t>(s.zero_point));
  out.residual_scale = f32_splat(floats[3]);
  out.residual_shift = i32_splat(static_cast<int32_t>(-s.residual_zero_point));
  out.activation = static_cast<Activation>(s.activation);
  out.adds = s.residual >= 0;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t tile = task / s.planes, plane = task % s.planes, row = tile / parts, part = tile % parts;
    const int64_t first = s.columns * part / parts, vectors = s.columns * (part + 1) / parts - first;
    out.starts = d.indices + s.starts + 4 * plane;
    out.scale = floats + 4 + 4 * plane;
    out.bias = floats + 4 + 4 * (s.planes + plane);
    ChainTile t = {d.arena + s.x + row * s.x_down + first * s.x_across, s.x_across, d.arena,
                   d.arena + s.y + chain_plane(s, plane) + row * s.y_pitch + 64 * s.spread * first, 64 * s.spread};
    if (s.residual >= 0) {
      t.residual += s.residual + plane * s.residual_plane + row * s.residual_pitch + 64 * first;
    }
    if (chain_quads(s, d, t, out, plane, vectors)) continue;
    if (s.block_rows == 1) {
      chain_tile<1, kChainVectors1>(s, d, t, out, plane, vectors);
    } else {
      chain_tile<4, kChainVectors4>(s, d, t, out, plane, vectors);
    }
  }
}
