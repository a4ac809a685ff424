// AVX-512 with VNNI. Every include with code comes before the target pragma, and all else has internal linkage:
// a weak symbol compiled for this instruction set could be picked by the linker for all machines.
#include <immintrin.h>

#include <cstring>

#include "kernels.h"
#include "sparse_f32.h"

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,popcnt,avx512vnni"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,popcnt,avx512vnni")
#endif

#define TORCHACCEL_VNNI

namespace torchaccel {
namespace {

#include "simd_avx512.h"

}  // namespace

namespace {

#include "kernels.inl"

}  // namespace

const Kernels kAvx512VnniKernels = {"avx512_vnni", quantize, quantize_rows, dense,      dense_dynamic,
                                    weight_only,   sparse,   sparse_valid,  max_pool,   avg_pool,
                                    add,           chain,    chain_f32,     sparse_f32, sparse_f32_valid};

}  // namespace torchaccel

#ifdef __clang__
#pragma clang attribute pop
#endif
