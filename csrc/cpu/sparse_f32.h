// Pruned float32 weights as the CPU kernel reads them, and what it needs besides; see sparse_f32.inl.
#pragma once

#include "kernels.h"

namespace torchaccel {

// Output pixels of a tile, in lanes; its panel [1 + kDepthChunk][kTilePixels] of float nearly fills L1.
constexpr int64_t kTilePixels = 96;
constexpr int64_t kDepthChunk = 128;
constexpr int64_t kPanelStride = 4 * kTilePixels;  // bytes
// Output channels that one unit of work takes, a multiple of the rows that are computed together.
constexpr int64_t kSlabRows = 128;
constexpr int64_t kGroupRows = 4;
// Slabs whose sums wait in L2 for the next chunk.
constexpr int64_t kRunSlabs = 8;

// Weights [channels, depth], cut into slabs of output channels x chunks of depth, each a list of groups of four rows.
// A step of a group is one nonzero of each row: its place in the panel and its value. The rows of a group have about
// as many; where one has fewer, it ends in steps at the panel's row of zeros.
struct SparseF32 {
  int64_t channels, depth;
  int64_t groups, steps;
  bool shared;              // all rows of a group have the same columns, and a step has one offset
  const int32_t* first;     // [slabs * chunks + 1]: the first group of each slab and chunk
  const int32_t* group;     // [groups][3]: first step, steps, and the rows in their slab, a byte each
  const uint16_t* offsets;  // [steps][shared ? 1 : 4], bytes from the panel's row of zeros, and two steps to read ahead
  const float* values;      // [steps][4]

  int64_t slabs() const { return (channels + kSlabRows - 1) / kSlabRows; }
  int64_t chunks() const { return depth > kDepthChunk ? (depth + kDepthChunk - 1) / kDepthChunk : 1; }
  int64_t offsets_a_step() const { return shared ? 1 : kGroupRows; }
  int64_t first_step(int64_t slab) const { return slab < slabs() ? group[3 * first[slab * chunks()]] : steps; }
};

// act(sum + bias + residual); data and residual are [N, O, OH, OW], contiguous or channels_last.
struct OutputF32 {
  float* data;
  const float* bias;      // or nullptr
  const float* residual;  // or nullptr
  Activation activation;
  bool channels_last;
  int64_t channels;
  int64_t plane;  // OH * OW
  bool streams;   // past the caches, where whole lines are written: they would not stay there until they are read
};

// Bytes of inputs and outputs that do not stay in the caches from one layer to the next.
constexpr int64_t kStreamBytes = 24 << 20;

// The image is an Input whose channels are counted in bytes, 4 * C; contiguous or channels_last.
struct ImageF32 {
  Input in;
  bool channels_last;
  int64_t channels() const { return in.c / 4; }
};

// What a thread computes: vectors of 16 output pixels [begin, end), of slabs [first_slab, last_slab).
struct ShareF32 {
  int64_t begin, end, first_slab, last_slab;
  int64_t vectors() const { return end - begin; }
  int64_t tiles() const { return (16 * vectors() + kTilePixels - 1) / kTilePixels; }
  // Where a tile begins, so that all have about as many.
  int64_t tile(int64_t index) const { return begin + vectors() * index / tiles(); }
};

// A panel with room to run over its end, the sums of a run of slabs, and the padding of 16 pixels.
constexpr int64_t kPanelF32Bytes = (1 + kDepthChunk) * kPanelStride + 64;
inline int64_t sparse_f32_bytes(const SparseF32& w) {
  const int64_t rows = (w.slabs() < kRunSlabs ? w.slabs() : kRunSlabs) * kSlabRows;
  return kPanelF32Bytes + rows * kPanelStride + kLanes * 64;
}

}  // namespace torchaccel
