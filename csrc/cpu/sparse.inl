// Weight-sparse int8 convolution: 64 output pixels in lanes, nonzero blocks of 1x4 or 4x4 weights broadcast.
//
// The panel holds 4 bytes (4 input channels at one tap) of every pixel side by side, so a block costs one broadcast of
// its weights and kVectors loads and dot products, wherever its column lies. Two sets of accumulators hide the latency
// of 1x4 blocks; the 4 rows of a 4x4 block share their loads. The sums of 16 output channels go to L1, are transposed
// to one vector of channels a pixel, and meet the same epilogue as the dense kernel.
// Roofline: 1x4 by loads (5 for 4 products), 4x4 by products.
#pragma once

#include "epilogue.inl"
#include "gather.inl"

// acc [kVectors * 16] of one output channel.
template <int kVectors>
static void sparse_row_1x4(const int8_t* values, const int32_t* columns, int64_t count, const uint8_t* x,
                           int64_t stride, int32_t* acc) {
  constexpr int kSets = 2 * kVectors <= kAccumulators ? 2 : 1;
  I32 sums[kSets][kVectors];
  for (int s = 0; s < kSets; ++s) {
    for (int v = 0; v < kVectors; ++v) sums[s][v] = i32_splat(0);
  }
  int64_t i = 0;
  for (; i + kSets <= count; i += kSets) {
    for (int s = 0; s < kSets; ++s) {
      const W weights = w_splat(values + 4 * (i + s));
      const uint8_t* from = x + columns[i + s] * stride;
      for (int v = 0; v < kVectors; ++v) sums[s][v] = dot4(sums[s][v], x_load(from + 64 * v), weights);
    }
  }
  if (kSets == 2 && i < count) {
    const W weights = w_splat(values + 4 * i);
    const uint8_t* from = x + columns[i] * stride;
    for (int v = 0; v < kVectors; ++v) sums[0][v] = dot4(sums[0][v], x_load(from + 64 * v), weights);
  }
  for (int v = 0; v < kVectors; ++v) {
    i32_store(acc + 16 * v, kSets == 2 ? i32_add(sums[0][v], sums[kSets - 1][v]) : sums[0][v]);
  }
}

// acc [4][acc_stride] of four output channels, kVectors * 16 pixels.
template <int kVectors>
static void sparse_rows_4x4(const int8_t* values, const int32_t* columns, int64_t count, const uint8_t* x,
                            int64_t stride, int32_t* acc, int64_t acc_stride) {
  I32 sums[4][kVectors];
  for (int r = 0; r < 4; ++r) {
    for (int v = 0; v < kVectors; ++v) sums[r][v] = i32_splat(0);
  }
  for (int64_t i = 0; i < count; ++i) {
    const uint8_t* from = x + columns[i] * stride;
    X activations[kVectors];
    for (int v = 0; v < kVectors; ++v) activations[v] = x_load(from + 64 * v);
    for (int r = 0; r < 4; ++r) {
      const W weights = w_splat(values + 16 * i + 4 * r);
      for (int v = 0; v < kVectors; ++v) sums[r][v] = dot4(sums[r][v], activations[v], weights);
    }
  }
  for (int r = 0; r < 4; ++r) {
    for (int v = 0; v < kVectors; ++v) i32_store(acc + r * acc_stride + 16 * v, sums[r][v]);
  }
}

// Sums of output channels [channel, channel + n) into acc [n][kPanelRows].
template <int kVectors>
static void sparse_channels(const SparseWeights& weights, int64_t channel, int64_t n, const Panel& panel,
                            int32_t* acc) {
  constexpr int kStep = 4 * kVectors <= kAccumulators ? kVectors : 1;
  const int64_t block_rows = weights.block_rows;
  for (int64_t c = 0; c < n; c += block_rows) {
    const int64_t begin = weights.row_offsets[(channel + c) / block_rows];
    const int64_t count = weights.row_offsets[(channel + c) / block_rows + 1] - begin;
    const int8_t* values = weights.values + begin * block_rows * 4;
    const int32_t* columns = weights.columns + begin;
    int32_t* to = acc + c * kPanelRows;
    if (block_rows == 1) {
      sparse_row_1x4<kVectors>(values, columns, count, panel.data, panel.stride, to);
    } else {
      for (int v = 0; v < kVectors; v += kStep) {
        sparse_rows_4x4<kStep>(values, columns, count, panel.data + 64 * v, panel.stride, to + 16 * v, kPanelRows);
      }
    }
  }
}

static void sparse(const Input& in, const SparseWeights& weights, const Epilogue& e, int64_t begin, int64_t end,
                   uint8_t* scratch) {
  alignas(64) int32_t sums[kLanes * kPanelRows];  // [channel][pixel]
  alignas(64) int32_t acc[kPanelRows * kLanes];   // [pixel][channel]
  const int64_t blocks = (weights.channels + kLanes - 1) / kLanes;
  Panel panel = {nullptr, 0, 0};
  int64_t gathered = -1, row = 0, rows = 0;
  for (int64_t task = begin; task < end; ++task) {
    if (task / blocks != gathered) {
      gathered = task / blocks;
      row = gathered * kPanelRows;
      rows = in.rows() - row < kPanelRows ? in.rows() - row : kPanelRows;
      panel = gather(in, 0, row, rows, 0, in.depth4(), scratch, scratch + in.panel_bytes());
    }
    const int64_t channel = task % blocks * kLanes;
    const int64_t n = weights.channels - channel < kLanes ? weights.channels - channel : kLanes;
    if (n < kLanes) memset(sums, 0, sizeof(sums));
    switch (panel.width / 16) {
      case 1:
        sparse_channels<1>(weights, channel, n, panel, sums);
        break;
      case 2:
        sparse_channels<2>(weights, channel, n, panel, sums);
        break;
      case 3:
        sparse_channels<3>(weights, channel, n, panel, sums);
        break;
      default:
        sparse_channels<4>(weights, channel, n, panel, sums);
        break;
    }
    for (int64_t p = 0; p < panel.width; p += 16) {
      const uint8_t* from[16];
      for (int i = 0; i < 16; ++i) from[i] = reinterpret_cast<const uint8_t*>(sums + i * kPanelRows + p);
      transpose16(from, 16, 0, reinterpret_cast<uint8_t*>(acc + p * kLanes), 4 * kLanes);
    }
    finish(e, acc, kLanes, row, rows, channel, n);
  }
}
