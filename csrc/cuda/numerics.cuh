// The int8 arithmetic that every CUDA kernel shares, to the bit that of the Python references. Free of torch headers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cfloat>
#include <cstdint>
#include <cstring>

namespace torchaccel::cuda {

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(int8_t x) { return static_cast<float>(x); }
__device__ inline float to_float(uint8_t x) { return static_cast<float>(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ inline T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

template <typename Q>
struct Limits;
template <>
struct Limits<int8_t> {
  static constexpr float kLow = -128.0f, kHigh = 127.0f;
};
template <>
struct Limits<uint8_t> {
  static constexpr float kLow = 0.0f, kHigh = 255.0f;
};

__device__ inline float clamp(float x, float low, float high) { return fminf(fmaxf(x, low), high); }

// rint(x * inverse) + zero_point, half to even, saturating; NaN becomes the zero point. The product and the sum are
// rounded apart, hence the intrinsics, which the compiler does not fuse. The clamp to 1024 keeps the sum exact.
template <typename Q>
__device__ inline Q quantize(float x, float inverse, float zero_point) {
  float steps = rintf(__fmul_rn(x, inverse));
  steps = steps == steps ? clamp(steps, -1024.0f, 1024.0f) : 0.0f;
  return static_cast<Q>(static_cast<int32_t>(clamp(__fadd_rn(steps, zero_point), Limits<Q>::kLow, Limits<Q>::kHigh)));
}

// kWidth neighbours moved by one load or store, or by some of 16 bytes each.
template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth < 16 ? sizeof(T) * kWidth : 16) Pack {
  T values[kWidth];
};

// Two of a half type in one register, the first in the low half.
template <typename X>
__device__ inline uint32_t bits_of(X low, X high) {
  Pack<X, 2> pair{{low, high}};
  uint32_t bits;
  static_assert(sizeof(pair) == sizeof(bits), "a half type");
  memcpy(&bits, &pair, sizeof(bits));
  return bits;
}

template <typename Q, typename T, int kWidth>
__device__ inline Pack<Q, kWidth> quantize(const Pack<T, kWidth>& x, float inverse, float zero_point) {
  Pack<Q, kWidth> q;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) q.values[i] = quantize<Q>(to_float(x.values[i]), inverse, zero_point);
  return q;
}

}  // namespace torchaccel::cuda
