// Dense int8 convolution and matrix product: panels of 64 rows against units of 32 output channels.
//
// A panel is gathered once (gather.inl) and stays in L2 while all units pass over it; the packed weights of a unit
// (32 * K bytes) stay in L1 or L2 while the panel's row tiles pass over them. In a tile kTileRows x kTileVectors
// accumulators live in registers; each step of 4 along K loads kTileVectors weight vectors and broadcasts one dword a
// row. Roofline: two dot products of 64 bytes a clock (VNNI), met by 10 loads for 16 products.
#pragma once

#include "epilogue.inl"
#include "gather.inl"

template <int kRows, int kVectors>
static void dense_tile(const uint8_t* x, int64_t stride, const int8_t* w, int64_t w_stride, int64_t depth4,
                       int32_t* acc) {
  I32 sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) sums[r][v] = i32_splat(0);
  }
  for (int64_t k = 0; k < depth4; ++k, x += stride, w += 64) {
    W weights[kVectors];
    for (int v = 0; v < kVectors; ++v) weights[v] = w_load(w + v * w_stride);
    for (int r = 0; r < kRows; ++r) {
      const X activations = x_splat(x + 4 * r);
      for (int v = 0; v < kVectors; ++v) sums[r][v] = dot4(sums[r][v], activations, weights[v]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) i32_store(acc + r * kUnitChannels + 16 * v, sums[r][v]);
  }
}

// acc [rows][32] of 16 * kVectors channels.
template <int kVectors>
static void dense_rows(const Panel& panel, int64_t rows, const int8_t* w, int64_t depth4, int32_t* acc) {
  const int64_t w_stride = depth4 * 64;
  for (int64_t r = 0; r < rows;) {
    const uint8_t* x = panel.data + 4 * r;
    int32_t* to = acc + r * kUnitChannels;
    const int64_t left = rows - r;
    // The panel is 16 rows wide at least: a tile may compute rows that are never stored.
    if (kTileRows >= 8 && left > 4) {
      dense_tile<8, kVectors>(x, panel.stride, w, w_stride, depth4, to);
      r += 8;
    } else if (left > 2) {
      dense_tile<4, kVectors>(x, panel.stride, w, w_stride, depth4, to);
      r += 4;
    } else if (left == 2) {
      dense_tile<2, kVectors>(x, panel.stride, w, w_stride, depth4, to);
      r += 2;
    } else {
      dense_tile<1, kVectors>(x, panel.stride, w, w_stride, depth4, to);
      r += 1;
    }
  }
}

static void dense(const Input& in, const DenseWeights& weights, const Epilogue& e, int64_t begin, int64_t end,
                  uint8_t* scratch) {
  alignas(64) int32_t acc[kPanelRows * kUnitChannels];
  const int64_t units = weights.units(), blocks = weights.blocks16(), depth4 = in.depth4();
  Panel panel = {nullptr, 0, 0};
  int64_t gathered = -1, row = 0, rows = 0;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t unit = task % units, group = task / units % weights.groups;
    if (task / units != gathered) {
      gathered = task / units;
      row = gathered / weights.groups * kPanelRows;
      rows = in.rows() - row < kPanelRows ? in.rows() - row : kPanelRows;
      panel = gather(in, group, row, rows, 0, depth4, scratch, scratch + in.panel_bytes());
    }
    const int64_t block = 2 * unit, count = blocks - block < 2 ? blocks - block : 2;
    const int8_t* w = weights.packed + (group * blocks + block) * depth4 * 64;
    if (kTileVectors == 2 && count == 2) {
      dense_rows<2>(panel, rows, w, depth4, acc);
    } else {
      for (int64_t b = 0; b < count; ++b) dense_rows<1>(panel, rows, w + b * depth4 * 64, depth4, acc + 16 * b);
    }
    const int64_t channel = unit * kUnitChannels, left = weights.group_channels - channel;
    finish(e, acc, kUnitChannels, row, rows, group * weights.group_channels + channel,
           left < kUnitChannels ? left : kUnitChannels);
  }
}
