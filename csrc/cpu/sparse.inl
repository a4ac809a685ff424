// Weight-sparse int8 convolution: 64 output pixels in lanes, nonzero blocks of 1x4 or 4x4 weights broadcast.
//
// The panel holds 4 bytes (4 input channels at one tap) of every pixel side by side, so a block costs one broadcast of
// its weights and kVectors loads and dot products, wherever its column lies. Two sets of accumulators hide the latency
// of 1x4 blocks; the 4 rows of a 4x4 block share their loads. A deep panel is gathered and used in chunks along K that
// stay in L1, since blocks read it at random; the sums of up to kSlabChannels output channels wait in L2 meanwhile.
// The sums of 16 output channels are transposed to one vector of channels a pixel, and meet the same epilogue as the
// dense kernel. Roofline: 1x4 by loads (5 for 4 products), 4x4 by products.
#pragma once

#include "epilogue.inl"
#include "gather.inl"

// acc [kVectors * 16] of one output channel, over `count` blocks; x lies a chunk's first column before the panel.
template <int kVectors, bool kFresh>
TORCHACCEL_INLINE void sparse_row_1x4(const int8_t* values, const int32_t* columns, int64_t count, const uint8_t* x,
                                      int32_t* acc) {
  constexpr int kSets = 2 * kVectors <= kAccumulators ? 2 : 1;
  constexpr int64_t kStride = 64 * kVectors;
  I32 sums[kSets][kVectors];
  for (int s = 0; s < kSets; ++s) {
    for (int v = 0; v < kVectors; ++v) sums[s][v] = kFresh || s > 0 ? i32_splat(0) : i32_load(acc + 16 * v);
  }
  int64_t i = 0;
  for (; i + kSets <= count; i += kSets) {
    for (int s = 0; s < kSets; ++s) {
      const W weights = w_splat(load_word(values + 4 * (i + s)));
      const uint8_t* from = x + columns[i + s] * kStride;
      for (int v = 0; v < kVectors; ++v) sums[s][v] = dot4(sums[s][v], x_load(from + 64 * v), weights);
    }
  }
  if (kSets == 2 && i < count) {
    const W weights = w_splat(load_word(values + 4 * i));
    const uint8_t* from = x + columns[i] * kStride;
    for (int v = 0; v < kVectors; ++v) sums[0][v] = dot4(sums[0][v], x_load(from + 64 * v), weights);
  }
  for (int v = 0; v < kVectors; ++v) {
    i32_store(acc + 16 * v, kSets == 2 ? i32_add(sums[0][v], sums[kSets - 1][v]) : sums[0][v]);
  }
}

// acc [4][kPanelRows] of four output channels, kVectors * 16 pixels.
template <int kVectors, bool kFresh>
TORCHACCEL_INLINE void sparse_rows_4x4(const int8_t* values, const int32_t* columns, int64_t count, const uint8_t* x,
                                       int64_t stride, int32_t* acc) {
  I32 sums[4][kVectors];
  for (int r = 0; r < 4; ++r) {
    for (int v = 0; v < kVectors; ++v) sums[r][v] = kFresh ? i32_splat(0) : i32_load(acc + r * kPanelRows + 16 * v);
  }
  for (int64_t i = 0; i < count; ++i) {
    const uint8_t* from = x + columns[i] * stride;
    X activations[kVectors];
    for (int v = 0; v < kVectors; ++v) activations[v] = x_load(from + 64 * v);
    for (int r = 0; r < 4; ++r) {
      const W weights = w_splat(load_word(values + 16 * i + 4 * r));
      for (int v = 0; v < kVectors; ++v) sums[r][v] = dot4(sums[r][v], activations[v], weights);
    }
  }
  for (int r = 0; r < 4; ++r) {
    for (int v = 0; v < kVectors; ++v) i32_store(acc + r * kPanelRows + 16 * v, sums[r][v]);
  }
}

// How many columns, of `count` that ascend, lie below `end`; `readable` columns may be read.
TORCHACCEL_INLINE int64_t columns_below(const int32_t* columns, int64_t count, int64_t readable, int32_t end) {
  for (int64_t i = 0; i < count; i += 16) {
    const I32 here = i + 16 <= readable ? i32_load(columns + i) : i32_load_n(columns + i, readable - i);
    const int64_t prefix = __builtin_ctz(~i32_signs(i32_sub(here, i32_splat(end))));
    if (prefix < 16) return i + prefix < count ? i + prefix : count;
  }
  return count;
}

// One chunk [begin, end) of K for output channels [channel, channel + n): sums [n][kPanelRows]. `next` holds, for each
// row of blocks, where its columns of this chunk begin.
template <int kVectors, int kBlockRows, bool kFresh>
static void sparse_chunk(const SparseWeights& weights, const Panel& panel, int64_t begin, int64_t end, int64_t channel,
                         int64_t n, int32_t* next, int32_t* sums) {
  constexpr int kStep = 4 * kVectors <= kAccumulators ? kVectors : 1;
  const int64_t stride = panel.stride, rows = n / kBlockRows;
  const int32_t* offsets = weights.row_offsets + channel / kBlockRows + 1;
  const uint8_t* x = panel.data - begin * stride;
  const bool last = end == weights.depth4;
  for (int64_t r = 0; r < rows; ++r, sums += kBlockRows * kPanelRows) {
    const int64_t from = next[r];
    const int32_t* columns = weights.columns + from;
    int64_t count = offsets[r] - from;
    if (!last) count = columns_below(columns, count, weights.blocks - from, static_cast<int32_t>(end));
    next[r] = static_cast<int32_t>(from + count);
    const int8_t* values = weights.values + from * kBlockRows * 4;
    if (kBlockRows == 1) {
      sparse_row_1x4<kVectors, kFresh>(values, columns, count, x, sums);
    } else {
      for (int v = 0; v < kVectors; v += kStep) {
        sparse_rows_4x4<kStep, kFresh>(values, columns, count, x + 64 * v, stride, sums + 16 * v);
      }
    }
  }
}

template <int kVectors>
static void sparse_chunk(const SparseWeights& weights, const Panel& panel, int64_t begin, int64_t end, int64_t channel,
                         int64_t n, int32_t* next, int32_t* sums) {
  const auto chunk = weights.block_rows == 1
                         ? (begin == 0 ? sparse_chunk<kVectors, 1, true> : sparse_chunk<kVectors, 1, false>)
                         : (begin == 0 ? sparse_chunk<kVectors, 4, true> : sparse_chunk<kVectors, 4, false>);
  chunk(weights, panel, begin, end, channel, n, next, sums);
}

static void sparse_chunk(const SparseWeights& weights, const Panel& panel, int64_t begin, int64_t end, int64_t channel,
                         int64_t n, int32_t* next, int32_t* sums) {
  switch (panel.width / 16) {
    case 1:
      return sparse_chunk<1>(weights, panel, begin, end, channel, n, next, sums);
    case 2:
      return sparse_chunk<2>(weights, panel, begin, end, channel, n, next, sums);
    case 3:
      return sparse_chunk<3>(weights, panel, begin, end, channel, n, next, sums);
    default:
      return sparse_chunk<4>(weights, panel, begin, end, channel, n, next, sums);
  }
}

// Where the chunk from `begin` ends: at most `size` on, and between two transposes of the gathering.
static int64_t chunk_end(const Input& in, int64_t begin, int64_t size) {
  const int64_t depth4 = in.depth4(), end = begin + size;
  if (end >= depth4) return depth4;
  const int64_t groups = in.group_channels % 4 == 0 ? in.group_channels / 4 : depth4;
  return end - end % groups % 16;
}

static void sparse(const Input& in, const SparseWeights& weights, const Epilogue& e, int64_t begin, int64_t end,
                   uint8_t* scratch) {
  alignas(64) int32_t acc[kPanelRows * kLanes];  // [pixel][channel]
  int32_t next[kSlabChannels];
  const int64_t chunk_bytes = in.chunk_bytes(weights.block_rows);
  int32_t* sums = reinterpret_cast<int32_t*>(scratch + chunk_bytes);  // [channel][pixel]
  uint8_t* gathering = scratch + chunk_bytes + kSlabChannels * kPanelRows * 4;
  const int64_t blocks = (weights.channels + kLanes - 1) / kLanes, depth4 = weights.depth4;
  Panel panel = {nullptr, 0, 0};
  int64_t gathered = -1;
  for (int64_t task = begin; task < end;) {
    const int64_t index = task / blocks, row = index * kPanelRows;
    const int64_t rows = in.rows() - row < kPanelRows ? in.rows() - row : kPanelRows;
    // Whole chunks of about the same size.
    const int64_t largest = chunk_bytes / 4 / ((rows + 15) / 16 * 16), chunks = (depth4 + largest - 1) / largest;
    const int64_t size = chunks < 2 ? largest : (depth4 + chunks - 1) / chunks + 15;
    // Without chunks, the sums go through the epilogue while they are in L1.
    int64_t slab = chunks < 2 ? 1 : kSlabChannels / kLanes;
    if (slab > end - task) slab = end - task;
    if (slab > blocks - task % blocks) slab = blocks - task % blocks;
    const int64_t channel = task % blocks * kLanes;
    const int64_t n = weights.channels - channel < slab * kLanes ? weights.channels - channel : slab * kLanes;
    memcpy(next, weights.row_offsets + channel / weights.block_rows, static_cast<size_t>(n / weights.block_rows) * 4);
    for (int64_t k = 0, stop = 0; k < depth4 || k == 0; k = stop) {
      stop = chunk_end(in, k, size < largest ? size : largest);
      if (chunks > 1 || gathered != index) panel = gather(in, 0, row, rows, k, stop, scratch, gathering);
      gathered = index;
      sparse_chunk(weights, panel, k, stop, channel, n, next, sums);
      if (depth4 == 0) break;
    }
    for (int64_t c = 0; c < n; c += kLanes) {
      const int64_t lanes = n - c < kLanes ? n - c : kLanes;
      for (int64_t p = 0; p < panel.width; p += 16) {
        const uint8_t* from[16];
        for (int i = 0; i < 16; ++i) {  // channels that do not exist repeat the first, and are not stored
          from[i] = reinterpret_cast<const uint8_t*>(sums + (i < lanes ? c + i : c) * kPanelRows + p);
        }
        transpose16(from, 16, 0, reinterpret_cast<uint8_t*>(acc + p * kLanes), 4 * kLanes);
      }
      finish(e, acc, kLanes, row, rows, channel + c, lanes);
    }
    task += slab;
  }
}

// Whether the columns lie in [0, depth4) and ascend within each row; row_offsets are known to rise from 0 to all
// blocks.
static bool sparse_valid(const SparseWeights& weights) {
  const int64_t blocks = weights.blocks;
  const int32_t* columns = weights.columns;
  const int32_t last = static_cast<int32_t>(weights.depth4) - 1;
  int outside = 0;
  int64_t descents = 0;  // from one column to the next, wherever rows begin
  for (int64_t i = 0; i < blocks; i += 16) {
    const int64_t left = blocks - i < 16 ? blocks - i : 16;
    const I32 here = i32_load_n(columns + i, left);
    outside |= i32_signs(here) | i32_signs(i32_sub(i32_splat(last), here));
    if (i + 1 < blocks) {
      const int64_t pairs = blocks - 1 - i < 16 ? blocks - 1 - i : 16;
      const I32 rise =
          i32_sub(i32_load_n(columns + i + 1, pairs), i32_add(i32_load_n(columns + i, pairs), i32_splat(1)));
      descents += __builtin_popcount(i32_signs(rise) & ((1 << pairs) - 1));
    }
  }
  int64_t between_rows = 0;
  for (int64_t r = 1, before = 0; r < weights.channels / weights.block_rows; ++r) {
    const int64_t at = weights.row_offsets[r];
    if (at == before || at == blocks) continue;  // an empty row before: the same place, counted once
    before = at;
    between_rows += columns[at] <= columns[at - 1];
  }
  return outside == 0 && descents == between_rows;
}
