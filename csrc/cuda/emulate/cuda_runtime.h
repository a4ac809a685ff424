// Stands in for CUDA's header of the same name when g++ compiles kernels for emulate.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulate.h"

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __grid_constant__
#define __forceinline__ inline
#define __restrict__
#define __align__(bytes) alignas(bytes)

using cudaStream_t = void*;
using std::max;
using std::min;

struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) int2 {
  int32_t x, y;
};
struct alignas(16) int4 {
  int32_t x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline int2 make_int2(int32_t x, int32_t y) { return {x, y}; }
inline int4 make_int4(int32_t x, int32_t y, int32_t z, int32_t w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline void __syncthreads() { emulate::barrier(); }
inline void __syncwarp() { emulate::sync_warp(); }
[[noreturn]] inline void __trap() { __builtin_trap(); }

// What lane `from` gave.
template <typename T>
T __shfl_sync(unsigned mask, T value, int from) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  emulate::Shuffle shuffle{0, 0, from, mask};
  std::memcpy(&shuffle.given, &value, sizeof(value));
  emulate::collective(emulate::shuffle, &shuffle);
  std::memcpy(&value, &shuffle.got, sizeof(value));
  return value;
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return __shfl_sync(mask, value, static_cast<int>(threadIdx.x % emulate::kWarp) ^ lanes);
}

// Past the last lane: the lane's own value.
template <typename T>
T __shfl_down_sync(unsigned mask, T value, int lanes) {
  const int lane = static_cast<int>(threadIdx.x % emulate::kWarp);
  return __shfl_sync(mask, value, lane + lanes < emulate::kWarp ? lane + lanes : lane);
}

template <typename T>
T __ldg(const T* p) {
  return *p;
}

// Compiled without contraction, plain operators round as these intrinsics do.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float rsqrtf(float a) { return 1.0f / std::sqrt(a); }
inline float __expf(float a) { return std::exp(a); }

inline float __int_as_float(int bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline int __float_as_int(float value) {
  int bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
inline float __uint_as_float(uint32_t bits) { return __int_as_float(static_cast<int>(bits)); }
inline uint32_t __float_as_uint(float value) { return static_cast<uint32_t>(__float_as_int(value)); }

inline uint32_t __umulhi(uint32_t a, uint32_t b) { return static_cast<uint32_t>(uint64_t{a} * b >> 32); }

// Byte i of the result is the byte that nibble i of `selector` names: 0..3 of a, 4..7 of b; bit 3 spreads its sign.
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t both = uint64_t{b} << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t nibble = selector >> 4 * i & 15;
    uint32_t byte = both >> 8 * (nibble & 7) & 255;
    if (nibble & 8) byte = byte & 128 ? 255 : 0;
    result |= byte << 8 * i;
  }
  return result;
}

inline int __popc(uint32_t bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<uint32_t>(bits)); }

namespace torchaccel::cuda {

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared, cudaStream_t,
            Arguments... arguments) {
  const auto body = [=] { kernel(arguments...); };
  emulate::launch(
      reinterpret_cast<const void*>(kernel), blocks, threads, shared,
      [](const void* given) { (*static_cast<decltype(&body)>(given))(); }, &body, sizeof(body));
}

}  // namespace torchaccel::cuda
