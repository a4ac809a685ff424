// The packed layout of pruned float32 weights, and its packing.
#pragma once

#include "arguments.h"
#include "sparse_f32.h"

namespace torchaccel {

// values [blocks, rows, columns], columns [blocks] and row_offsets [O / rows + 1] of a matrix [O, depth], as int32.
Tensor pack_sparse_f32(const Tensor& values, const Tensor& columns, const Tensor& row_offsets, int64_t depth);

// Refuses a foreign tensor.
void check_packed(const char* op, const Tensor& packed, bool valid);

// What `packed` holds, of `channels` and `depth`; the slabs are still to be checked, by who uses them.
SparseF32 sparse_f32_of(const char* op, const Tensor& packed, int64_t channels, int64_t depth);

}  // namespace torchaccel
