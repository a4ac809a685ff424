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

// The block's dynamic shared memory, 1024-byte aligned; its size is given at launch.
__device__ inline uint8_t* shared_memory() {
  extern __shared__ __align__(1024) uint8_t torchaccel_shared[];
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

// ---- Products of a warpgroup: four warps, the first a multiple of four, each with 16 of 64 rows of weights. Of sm_90a
// alone: elsewhere kWarpgroups is false, and nobody may call them.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
constexpr bool kWarpgroups = true;
#define TORCHACCEL_SM90A(...) asm volatile(__VA_ARGS__)
#else
constexpr bool kWarpgroups = false;
#define TORCHACCEL_SM90A(...) __trap()
#endif

// Describes rows of kBytes (64 or 128) in shared memory, one after the other in groups of eight, swizzled as
// operand.cuh has it, from a group of rows on: `rows` is aligned to 8 * kBytes but for the 32 bytes of K that a product
// takes, by which it may be ahead.
template <int kBytes>
__device__ inline uint64_t descriptor(const void* rows) {
  static_assert(kBytes == 64 || kBytes == 128);
  constexpr uint64_t kSwizzle = kBytes == 64 ? 2 : 1, kGroup = 8 * kBytes;
  return (shared_address(rows) & 0x3ffff) >> 4 | uint64_t{1} << 16 | kGroup >> 4 << 32 | kSwizzle << 62;
}

// What this thread wrote or copied to shared memory before, products may read after the next barrier.
__device__ inline void fence_proxy_async() { TORCHACCEL_SM90A("fence.proxy.async.shared::cta;" :: : "memory"); }

// Keeps the compiler from moving what reads or writes sums across this place.
template <typename S, int kFragments>
__device__ inline void pin(S (&d)[kFragments][4]) {
#pragma unroll
  for (int i = 0; i < kFragments * 4; ++i) {
    if constexpr (std::is_same_v<S, float>) {
      asm volatile("" : "+f"(d[i / 4][i % 4])::"memory");
    } else {
      asm volatile("" : "+r"(d[i / 4][i % 4])::"memory");
    }
  }
}

// Before the first product of a group: its sums are there, whoever wrote them.
template <typename S, int kFragments>
__device__ inline void wgmma_fence(S (&d)[kFragments][4]) {
  pin(d);
  TORCHACCEL_SM90A("wgmma.fence.sync.aligned;" :: : "memory");
}

// Closes the group of products that the warp started since the last commit.
__device__ inline void wgmma_commit() { TORCHACCEL_SM90A("wgmma.commit_group.sync.aligned;" :: : "memory"); }

// Waits until all but the warp's latest kPending groups of products are done; at 0 its sums may be read.
template <int kPending, typename S, int kFragments>
__device__ inline void wgmma_wait(S (&d)[kFragments][4]) {
  TORCHACCEL_SM90A("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
  pin(d);
}

// Operands of a fragment of 8 columns, and of 8, 16 and 32 of them, that begin with fragment j.
#define TORCHACCEL_D(c, j) "+" c(d[j][0]), "+" c(d[j][1]), "+" c(d[j][2]), "+" c(d[j][3])
#define TORCHACCEL_D4(c, j) TORCHACCEL_D(c, j), TORCHACCEL_D(c, j + 1), TORCHACCEL_D(c, j + 2), TORCHACCEL_D(c, j + 3)
#define TORCHACCEL_D8(c, j) TORCHACCEL_D4(c, j), TORCHACCEL_D4(c, j + 4)
#define TORCHACCEL_D16(c, j) TORCHACCEL_D8(c, j), TORCHACCEL_D8(c, j + 8)
#define TORCHACCEL_D32(c, j) TORCHACCEL_D16(c, j), TORCHACCEL_D16(c, j + 16)
#define TORCHACCEL_NAMES8                                                                                \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define TORCHACCEL_NAMES16                                                                               \
  TORCHACCEL_NAMES8                                                                                      \
  ", "                                                                                                   \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, " \
  "%52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define TORCHACCEL_NAMES32                                                                               \
  TORCHACCEL_NAMES16                                                                                     \
  ", "                                                                                                   \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, " \
  "%84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, "   \
  "%103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, "     \
  "%119, %120, %121, %122, %123, %124, %125, %126, %127"
#define TORCHACCEL_WGMMA(shape, fragments, a_name, b_name, types, ones, c)                          \
  TORCHACCEL_SM90A("wgmma.mma_async.sync.aligned." shape "." types " {" TORCHACCEL_NAMES##fragments \
                   "}, " a_name ", " b_name ", " ones ";" : TORCHACCEL_D##fragments(c, 0) : "l"(a), \
                   "l"(b))
#define TORCHACCEL_WGMMA_OF(k, types, ones, c)                         \
  if constexpr (kColumns == 64) {                                      \
    TORCHACCEL_WGMMA("m64n64" k, 8, "%32", "%33", types, ones, c);     \
  } else if constexpr (kColumns == 128) {                              \
    TORCHACCEL_WGMMA("m64n128" k, 16, "%64", "%65", types, ones, c);   \
  } else {                                                             \
    static_assert(kColumns == 256, "the widths that are there");       \
    TORCHACCEL_WGMMA("m64n256" k, 32, "%128", "%129", types, ones, c); \
  }

// Starts d += a b over 32 bytes of K: a describes 64 rows of weights, b kColumns rows of activations. A lane's d[j] is
// mma's d of the 16 rows of its warp and the columns from 8 j on; nobody may touch it until the wait.
template <typename X, int kColumns>
__device__ inline void wgmma(typename Sum<X>::type (&d)[kColumns / 8][4], uint64_t a, uint64_t b) {
  if constexpr (std::is_same_v<X, int8_t>) {
    TORCHACCEL_WGMMA_OF("k32", "s32.s8.s8", "1", "r")
  } else if constexpr (std::is_same_v<X, uint8_t>) {
    TORCHACCEL_WGMMA_OF("k32", "s32.s8.u8", "1", "r")
  } else if constexpr (std::is_same_v<X, __half>) {
    TORCHACCEL_WGMMA_OF("k16", "f32.f16.f16", "1, 1, 1, 0, 0", "f")
  } else {
    TORCHACCEL_WGMMA_OF("k16", "f32.bf16.bf16", "1, 1, 1, 0, 0", "f")
  }
}
#undef TORCHACCEL_WGMMA_OF
#undef TORCHACCEL_WGMMA

#define TORCHACCEL_WGMMA_SP(shape, fragments, names, types, ones, c)                                   \
  TORCHACCEL_SM90A("wgmma.mma_async.sp.sync.aligned." shape "." types " {" TORCHACCEL_NAMES##fragments \
                   "}, " names ", " ones ";" : TORCHACCEL_D##fragments(c, 0) : "l"(a),                 \
                   "l"(b), "r"(metadata), "n"(kSelector))
#define TORCHACCEL_WGMMA_SP_OF(k, types, ones, c)                                   \
  if constexpr (kColumns == 64) {                                                   \
    TORCHACCEL_WGMMA_SP("m64n64" k, 8, "%32, %33, %34, %35", types, ones, c);       \
  } else if constexpr (kColumns == 128) {                                           \
    TORCHACCEL_WGMMA_SP("m64n128" k, 16, "%64, %65, %66, %67", types, ones, c);     \
  } else {                                                                          \
    static_assert(kColumns == 256, "the widths that are there");                    \
    TORCHACCEL_WGMMA_SP("m64n256" k, 32, "%128, %129, %130, %131", types, ones, c); \
  }

// The same over 64 bytes of b's K, of which a holds two of each four elements; each warp gives the metadata of mma_sp
// for its 16 rows.
template <typename X, int kColumns, int kSelector>
__device__ inline void wgmma_sp(typename Sum<X>::type (&d)[kColumns / 8][4], uint64_t a, uint64_t b,
                                uint32_t metadata) {
  if constexpr (std::is_same_v<X, int8_t>) {
    TORCHACCEL_WGMMA_SP_OF("k64", "s32.s8.s8", "1", "r")
  } else if constexpr (std::is_same_v<X, uint8_t>) {
    TORCHACCEL_WGMMA_SP_OF("k64", "s32.s8.u8", "1", "r")
  } else if constexpr (std::is_same_v<X, __half>) {
    TORCHACCEL_WGMMA_SP_OF("k32", "f32.f16.f16", "1, 1, 1, 0, 0", "f")
  } else {
    TORCHACCEL_WGMMA_SP_OF("k32", "f32.bf16.bf16", "1, 1, 1, 0, 0", "f")
  }
}
#undef TORCHACCEL_WGMMA_SP_OF
#undef TORCHACCEL_WGMMA_SP
#undef TORCHACCEL_NAMES32
#undef TORCHACCEL_NAMES16
#undef TORCHACCEL_NAMES8
#undef TORCHACCEL_D32
#undef TORCHACCEL_D16
#undef TORCHACCEL_D8
#undef TORCHACCEL_D4
#undef TORCHACCEL_D
#undef TORCHACCEL_SM90A

}  // namespace torchaccel::cuda::ptx

#endif
