// Baseline x86-64 (SSE2, by the compiler). Every include with code comes before the target pragma, and all else has
// internal linkage: a weak symbol compiled for this instruction set could be picked by the linker for all machines.
#include <cstring>

#include "kernels.h"
#include "sparse_f32.h"

// Vectors stay inside this file: how they would be passed to another does not matter.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace torchaccel {
namespace {

#include "simd_scalar.h"

}  // namespace

namespace {

#include "kernels.inl"

}  // namespace

const Kernels kScalarKernels = {"scalar",    quantize, quantize_rows, dense,      dense_dynamic,
                                weight_only, sparse,   sparse_valid,  max_pool,   avg_pool,
                                add,         chain,    chain_f32,     sparse_f32, sparse_f32_valid};

}  // namespace torchaccel
