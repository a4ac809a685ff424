// The instructions that CUDA C++ has no name for: each function is one of the PTX manual, nothing more. The only header
// with two versions: emulate/ptx.h defines the same functions for a CPU. Free of torch headers.
//
// X is the type of the activations, mma's B operand [8 columns, K contiguous]; the weights are its A operand [16 rows,
// K contiguous]: int8 for int8 and uint8 activations, else X itself. Sums are int32 for the first, float for the
// others. Fragments, lane = 4 * g + t (g 0..7, t 0..3), in 4-byte registers:
//   a[0..3]: rows g, g + 8, g, g + 8; bytes 4t..4t+3 of the first 16 (a[0], a[1]) and the next 16 (a[2], a[3])
//   b[i]:    column g; bytes 16 i + 4t .. 16 i + 4t + 3
//   d[0..3]: rows g, g, g + 8, g + 8; columns 2t, 2t + 1, 2t, 2t + 1
#pragma once

#ifndef __CUDACC__
#include "emulate/ptx.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

namespace torchaccel::cuda::ptx {

template <typename X>
struct Sum {
  using type = float;
};
template <>
struct Sum<int8_t> {
  using type = int32_t;
};
template <>
struct Sum<uint8_t> {
  using type = int32_t;
};

// The block's dynamic shared memory, 128-byte aligned; its size is given at launch.
__device__ inline uint8_t* shared_memory() {
  extern __shared__ __align__(128) uint8_t torchaccel_shared[];
  return torchaccel_shared;
}

__device__ inline uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Starts a copy of kBytes (4, 8 or 16, both sides aligned to it) from global to shared memory.
template <int kBytes>
__device__ inline void cp_async(void* shared, const void* global) {
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(shared)), "l"(global), "n"(kBytes)
                 : "memory");
  }
}

// Closes the group of copies that this thread started since the last commit.
__device__ inline void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most kPending of this thread's groups are under way; others see the data after a barrier.
template <int kPending>
__device__ inline void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four (two) matrices of 8 rows of 16 bytes: lane i gives the address of row i % 8 of matrix i / 8, and gets bytes
// 4t..4t+3 of row g of each.
__device__ inline void ldmatrix_x4(uint32_t (&d)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(shared_address(row))
               : "memory");
}

__device__ inline void ldmatrix_x2(uint32_t (&d)[2], const void* row) {  // lanes 0 to 15 give the addresses
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(d[0]), "=r"(d[1])
               : "r"(shared_address(row))
               : "memory");
}

#define TORCHACCEL_MMA(shape, types, suffix)                                            \
  asm volatile("mma.sync.aligned." shape ".row.col." types                              \
               " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "                        \
               "{%0, %1, %2, %3};"                                                      \
               : "+" suffix(d[0]), "+" suffix(d[1]), "+" suffix(d[2]), "+" suffix(d[3]) \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

// d += a b over 32 bytes of K: 32 int8, or 16 of a half type.
template <typename X>
__device__ inline void mma(typename Sum<X>::type (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
__device__ inline void mma<int8_t>(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  TORCHACCEL_MMA("m16n8k32", "s32.s8.s8.s32", "r");
}
template <>
__device__ inline void mma<uint8_t>(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  TORCHACCEL_MMA("m16n8k32", "s32.s8.u8.s32", "r");
}
template <>
__device__ inline void mma<__half>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  TORCHACCEL_MMA("m16n8k16", "f32.f16.f16.f32", "f");
}
template <>
__device__ inline void mma<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  TORCHACCEL_MMA("m16n8k16", "f32.bf16.bf16.f32", "f");
}
#undef TORCHACCEL_MMA

#define TORCHACCEL_MMA_SP(shape, types, suffix)                                                          \
  asm volatile("mma.sp::ordered_metadata.sync.aligned." shape ".row.col." types                          \
               " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;"    \
               : "+" suffix(d[0]), "+" suffix(d[1]), "+" suffix(d[2]), "+" suffix(d[3])                  \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), \
                 "r"(metadata), "n"(kSelector))

// d += a b over 64 bytes of b's K, of which a holds two of each four elements (2:4), 32 bytes a row. `metadata` holds
// the places of what is kept, 2 bits each and rising within a group of four, the first group in the lowest 4 bits:
//   int8: every lane, kSelector 0. t 0: row g, K 0..31; t 1: row g + 8, K 0..31; t 2: row g, K 32..63; t 3: row g + 8.
//   halves: lanes with t / 2 == kSelector. t even: K 0..15, of row g in the low 16 bits, of row g + 8 in the high ones;
//   t odd: K 16..31, likewise.
template <typename X, int kSelector>
__device__ inline void mma_sp(typename Sum<X>::type (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4],
                              uint32_t metadata) {
  if constexpr (sizeof(X) == 1) {
    static_assert(kSelector == 0, "int8 takes the metadata of all lanes");
    if constexpr (X(-1) < X(0)) {
      TORCHACCEL_MMA_SP("m16n8k64", "s32.s8.s8.s32", "r");
    } else {
      TORCHACCEL_MMA_SP("m16n8k64", "s32.s8.u8.s32", "r");
    }
  } else if constexpr (sizeof(X) == 2) {
    if constexpr (std::is_same_v<X, __half>) {
      TORCHACCEL_MMA_SP("m16n8k32", "f32.f16.f16.f32", "f");
    } else {
      TORCHACCEL_MMA_SP("m16n8k32", "f32.bf16.bf16.f32", "f");
    }
  }
}
#undef TORCHACCEL_MMA_SP

}  // namespace torchaccel::cuda::ptx

#endif
