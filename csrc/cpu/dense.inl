// Dense int8 convolution and matrix product: panels of 64 rows against units of 32 output channels.
//
// A panel is gathered once (gather.inl), in blocks [K / 4][16 rows][4], and stays in L2 while all units pass over it;
// the packed weights of a unit (32 * K bytes) stay in L1 or L2 while the panel's blocks pass over them. In a tile
// kTileRows x kTileVectors accumulators live in registers; each step of 4 along K loads kTileVectors weight vectors and
// broadcasts one dword a row. Roofline: two dot products of 64 bytes a clock (VNNI), met by 10 loads for 16 products.
#pragma once

#include "epilogue.inl"
#include "gather.inl"
#include "thin.inl"

// acc [kRows][32] = x [depth4][16][4] times kVectors blocks of 16 channels, w_stride bytes apart.
template <int kRows, int kVectors>
static void dense_tile(const uint8_t* x, const int8_t* w, int64_t w_stride, int64_t depth4, int32_t* acc) {
  I32 sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) sums[r][v] = i32_splat(0);
  }
  for (int64_t k = 0; k < depth4; ++k, x += 64, w += 64) {
    W weights[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      weights[v] = w_load(w + v * w_stride);
      __builtin_prefetch(w + v * w_stride + kPrefetchBytes);
    }
    for (int r = 0; r < kRows; ++r) {
      const X activations = x_splat(x + 4 * r);
      for (int v = 0; v < kVectors; ++v) sums[r][v] = dot4(sums[r][v], activations, weights[v]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) i32_store(acc + r * kUnitChannels + 16 * v, sums[r][v]);
  }
}

// acc [rows][32] of one block of up to 16 rows. It holds 16: a tile may compute rows that are never stored.
template <int kVectors>
static void dense_rows(const uint8_t* x, int64_t rows, const int8_t* w, int64_t w_stride, int64_t depth4,
                       int32_t* acc) {
  for (int64_t r = 0; r < rows;) {
    const uint8_t* from = x + 4 * r;
    int32_t* to = acc + r * kUnitChannels;
    const int64_t left = rows - r;
    if (kTileRows >= 8 && left > 4) {
      dense_tile<8, kVectors>(from, w, w_stride, depth4, to);
      r += 8;
    } else if (left > 2) {
      dense_tile<4, kVectors>(from, w, w_stride, depth4, to);
      r += 4;
    } else if (left == 2) {
      dense_tile<2, kVectors>(from, w, w_stride, depth4, to);
      r += 2;
    } else {
      dense_tile<1, kVectors>(from, w, w_stride, depth4, to);
      r += 1;
    }
  }
}

static void dense(const Input& in, const DenseWeights& weights, const Epilogue& e, int64_t begin, int64_t end,
                  uint8_t* scratch) {
  if (in.is_thin()) return thin(in, weights, e, begin, end, scratch);
  alignas(64) int32_t acc[kLanes * kUnitChannels];
  const int64_t units = weights.units(), blocks = weights.blocks16(), depth4 = in.depth4(), block_bytes = depth4 * 64;
  int64_t gathered = -1, row = 0, rows = 0;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t unit = task % units, group = task / units % weights.groups;
    if (task / units != gathered) {
      gathered = task / units;
      row = gathered / weights.groups * kPanelRows;
      rows = in.rows() - row < kPanelRows ? in.rows() - row : kPanelRows;
      gather_blocks(in, group, row, rows, 0, depth4, scratch, block_bytes, 64, scratch + in.panel_bytes());
    }
    const int64_t block = 2 * unit, count = blocks - block < 2 ? blocks - block : 2;
    const int8_t* w = weights.packed + (group * blocks + block) * block_bytes;
    const int64_t channel = unit * kUnitChannels, left = weights.group_channels - channel;
    // Finished block by block: the outputs of a channel over many rows may lie in the same set of L1, where a burst of
    // stores would wait for each other.
    for (int64_t r = 0; r < rows; r += kLanes) {
      const int64_t some = rows - r < kLanes ? rows - r : kLanes;
      const uint8_t* x = scratch + r / kLanes * block_bytes;
      if (kTileVectors == 2 && count == 2) {
        dense_rows<2>(x, some, w, block_bytes, depth4, acc);
      } else {
        for (int64_t b = 0; b < count; ++b) {
          dense_rows<1>(x, some, w + b * block_bytes, block_bytes, depth4, acc + 16 * b);
        }
      }
      finish(e, acc, kUnitChannels, row + r, some, group * weights.group_channels + channel,
             left < kUnitChannels ? left : kUnitChannels);
    }
  }
}
