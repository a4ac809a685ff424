// Stands in for CUDA's header of the same name when g++ compiles kernels for emulate.h.
#pragma once

#include <cmath>
#include <cstring>

#include "emulate.h"

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)
#define threadIdx (::emulate::self().thread)
#define blockIdx (::emulate::machine().block)
#define gridDim (::emulate::machine().grid)

using cudaStream_t = void*;

inline void __syncthreads() { emulate::wait(emulate::Fiber::kAtBarrier); }

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  static_assert(sizeof(T) == sizeof(uint32_t));
  if (mask != 0xffffffffu) std::abort();
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  bits = emulate::exchange(bits, [lanes](int lane) { return lane ^ lanes; });
  std::memcpy(&value, &bits, sizeof(bits));
  return value;
}

// Compiled without contraction, plain operators round as these intrinsics do.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }

inline float __int_as_float(int bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

namespace torchaccel::cuda {

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, cudaStream_t, Arguments... arguments) {
  emulate::launch(blocks, threads, [=] { kernel(arguments...); });
}

}  // namespace torchaccel::cuda
