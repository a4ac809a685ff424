// Weight-sparse float32 convolutions of a chain: 16 blocks' pixels in a vector, weights broadcast; see chain.h.
//
// The operand of a nonzero comes straight from the activation, aligned, wherever its column lies (sparse_steps.inl).
// Four output channels are computed together, to overlap the latencies of their loads and sums. K goes in chunks whose
// inputs stay in L1; the sums of a slab of channels wait in L2 meanwhile.
#pragma once

#include "chain_curve.inl"
#include "sparse_steps.inl"

// A tile of a row, of one slab of output channels.
struct ChainTileF32 {
  const uint8_t* x;
  const uint8_t* residual;  // or nullptr
  uint8_t* y;
  int64_t slab, chunk;
};

// The groups of one slab and chunk.
template <int V, int kAcross, bool kShared>
static void chain_groups(const ChainStep& step, const ChainData& data, const ChainTileF32& tile) {
  const ChainStep s = step;
  const ChainData d = data;
  const ChainTileF32 t = tile;  // copies: a store of floats might change what a reference leads to
  const int32_t* first = d.indices + s.row_offsets + t.slab * s.chunks + t.chunk;
  const float* bias = d.floats + s.floats + 2;
  const F32 low = f32_splat(bias[-2]), high = f32_splat(bias[-1]);
  const int64_t across = 16 * s.spread;  // from an output to the next
  const bool begins = t.chunk == 0, ends = t.chunk + 1 == s.chunks;
  for (int64_t g = first[0]; g < first[1]; ++g) {
    const int32_t* group = d.indices + s.starts + 6 * g;
    const int32_t* channels = group + 2;
    if (group[1] == 0 && !begins && !ends) continue;
    const float* values = static_cast<const float*>(d.values) + s.values + 4 * int64_t{group[0]};
    const int32_t* offsets = d.indices + s.offsets + (kShared ? 1 : 4) * int64_t{group[0]};
    for (int row = 0; row < 4; row += kRowsAtOnce) {
      if (row > 0 && channels[row] == channels[row - 1]) break;  // a repeated channel is done
      F32 sums[kRowsAtOnce][V];
      TORCHACCEL_UNROLL for (int r = 0; r < kRowsAtOnce; ++r) {
        const float* before = d.sums + 16 * V * (channels[row + r] - t.slab * kChainSlab);
        const F32 start = f32_splat(bias[channels[row + r]]);
        TORCHACCEL_UNROLL for (int v = 0; v < V; ++v) sums[r][v] = begins ? start : f32_load(before + 16 * v);
      }
      multiply_steps<Offsets32, kRowsAtOnce, V, kAcross, kShared>(values, offsets, group[1], row, t.x, sums);
      TORCHACCEL_UNROLL for (int r = 0; r < kRowsAtOnce; ++r) {
        const int64_t channel = channels[row + r];
        if (!ends) {
          float* after = d.sums + 16 * V * (channel - t.slab * kChainSlab);
          TORCHACCEL_UNROLL for (int v = 0; v < V; ++v) f32_store(after + 16 * v, sums[r][v]);
          continue;
        }
        float* y = reinterpret_cast<float*>(t.y + chain_plane(s, channel));
        const float* residual = reinterpret_cast<const float*>(t.residual + channel * s.residual_plane);
        TORCHACCEL_UNROLL for (int v = 0; v < V; ++v) {
          const F32 sum = t.residual == nullptr ? sums[r][v] : f32_add(sums[r][v], f32_load(residual + 16 * v));
          f32_store(y + across * v, f32_min(high, f32_max(low, sum)));  // NaN as the second operand stays NaN
        }
      }
    }
  }
}

using ChainGroups = void (*)(const ChainStep&, const ChainData&, const ChainTileF32&);

template <int kAcross, bool kShared>
static ChainGroups chain_groups_of(int64_t vectors) {
  constexpr ChainGroups kGroups[] = {chain_groups<1, kAcross, kShared>, chain_groups<2, kAcross, kShared>,
                                     chain_groups<3, kAcross, kShared>, chain_groups<4, kAcross, kShared>,
                                     chain_groups<5, kAcross, kShared>, chain_groups<6, kAcross, kShared>,
                                     chain_groups<7, kAcross, kShared>};
  return kGroups[vectors - 1];
}

template <bool kShared>
static ChainGroups chain_groups_of(int64_t across, int64_t vectors) {
  if (across == 64) return chain_groups_of<64, kShared>(vectors);
  if (across == 128) return chain_groups_of<128, kShared>(vectors);
  return chain_groups<1, 64, kShared>;
}

// Tasks [begin, end) of tiles x slabs.
static void chain_conv_f32(const ChainStep& s, const ChainData& d, int64_t begin, int64_t end) {
  const int64_t slabs = (s.planes + kChainSlab - 1) / kChainSlab, parts = (s.columns + s.tile - 1) / s.tile;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t tile = task / slabs, row = tile / parts, part = tile % parts;
    const int64_t last = s.columns * (part + 1) / parts;
    for (int64_t column = s.columns * part / parts, next; column < last; column = next) {
      const bool known = s.x_across == 64 || s.x_across == 128;  // other strides take one vector at a time
      const int64_t most = known ? kChainTile : 1;
      next = last - column < most ? last : column + most;
      const ChainGroups groups =
          (s.block_rows == 4 ? chain_groups_of<true> : chain_groups_of<false>)(s.x_across, next - column);
      ChainTileF32 t = {d.arena + s.x + row * s.x_down + column * s.x_across, nullptr,
                        d.arena + s.y + row * s.y_pitch + 64 * s.spread * column, task % slabs, 0};
      if (s.residual >= 0) t.residual = d.arena + s.residual + row * s.residual_pitch + 64 * column;
      for (; t.chunk < s.chunks; ++t.chunk) groups(s, d, t);
      if (s.activation != 0) {
        const int64_t first = t.slab * kChainSlab, after = first + kChainSlab;
        chain_curve_f32(s, t.y, first, after < s.planes ? after : s.planes, next - column);
      }
    }
  }
}
