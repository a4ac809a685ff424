// quantize_int8: float to int8 or uint8. Free of torch headers.
//
// Per tensor: each thread loads kInFlight packs of 16 bytes before it uses the first, one block walks 16 KB.
// Per row: a warp (short rows) or a block (long ones) reduces the row to its range and quantizes it. A row that fits
// stays in registers between the two, so it is read once; a longer or unaligned one is read again, from L2 mostly.
// Both are bound by memory: 5 bytes an element of float32, 3 of a half type, is the roofline. Offsets are 64-bit.
#pragma once

#include <algorithm>

#include "launch.cuh"
#include "numerics.cuh"
#include "ptx.cuh"

namespace torchaccel::cuda {

constexpr int kThreads = 256;
constexpr int kInFlight = 4;
constexpr int kPackBytes = 16;
constexpr int64_t kMaxBlocks = int64_t{1} << 30;

// x, q: n elements in the same order; scale: [1]; zero_point: [1] or null, for 0.
template <typename T, typename Q, int kWidth>
__global__ void __launch_bounds__(kThreads)
    quantize_tensor_kernel(const T* x, Q* q, const float* scale, const int32_t* zero_point, int64_t n) {
  const float inverse = __frcp_rn(*scale);
  const float shift = zero_point == nullptr ? 0.0f : static_cast<float>(*zero_point);
  const int64_t packs = n / kWidth;
  const auto* from = reinterpret_cast<const Pack<T, kWidth>*>(x);
  auto* to = reinterpret_cast<Pack<Q, kWidth>*>(q);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads * kInFlight + threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * kInFlight;
  for (int64_t start = first; start < packs; start += step) {
    Pack<T, kWidth> held[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (start + i * kThreads < packs) held[i] = from[start + i * kThreads];
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (start + i * kThreads < packs) to[start + i * kThreads] = quantize<Q>(held[i], inverse, shift);
    }
  }
  const int64_t last = packs * kWidth + threadIdx.x;  // fewer than kWidth elements are left
  if (blockIdx.x == 0 && last < n) q[last] = quantize<Q>(to_float(x[last]), inverse, shift);
}

// The range of a row, zero included, and whether all of it is finite.
struct Range {
  float low = 0.0f, high = 0.0f;
  int finite = 1;

  __device__ void add(float x) {
    low = fminf(low, x);  // drops NaN, which `finite` catches
    high = fmaxf(high, x);
    finite &= fabsf(x) <= FLT_MAX;
  }

  template <typename T, int kWidth>
  __device__ void add(const Pack<T, kWidth>& x) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) add(to_float(x.values[i]));
  }

  __device__ void add(const Range& other) {
    low = fminf(low, other.low);
    high = fmaxf(high, other.high);
    finite &= other.finite;
  }
};

__device__ inline Range reduce_warp(Range range) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    Range other;
    other.low = __shfl_xor_sync(0xffffffffu, range.low, lanes);
    other.high = __shfl_xor_sync(0xffffffffu, range.high, lanes);
    other.finite = __shfl_xor_sync(0xffffffffu, range.finite, lanes);
    range.add(other);
  }
  return range;
}

// Every thread of the block gets the range of all; the first barrier keeps `shared` until its last readers are done.
__device__ inline Range reduce_block(Range range) {
  auto* shared = reinterpret_cast<Range*>(ptx::shared_memory());  // one a warp
  range = reduce_warp(range);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = range;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kThreads / kWarp; ++i) range.add(shared[i]);
  return range;
}

struct RowScale {
  float scale, inverse;
  int32_t zero_point;
};

// int8 is symmetric over 127 steps a side; uint8 spans the range in 255, halved first since the span may overflow.
template <typename Q>
__device__ inline RowScale row_scale(const Range& range) {
  constexpr bool kSigned = Limits<Q>::kLow < 0.0f;
  const float span =
      kSigned ? fmaxf(-range.low, range.high) : __fadd_rn(__fmul_rn(range.high, 0.5f), -__fmul_rn(range.low, 0.5f));
  RowScale row;
  row.scale = fmaxf(__fdiv_rn(span, kSigned ? 127.0f : 127.5f), FLT_MIN);
  if (!range.finite) row.scale = __int_as_float(0x7fc00000);  // NaN
  row.inverse = __frcp_rn(row.scale);
  const float zero = kSigned || !range.finite ? 0.0f : rintf(__fmul_rn(-range.low, row.inverse));
  row.zero_point = static_cast<int32_t>(clamp(zero, 0.0f, 255.0f));
  return row;
}

// x, q: [rows, k] contiguous; scale, zero_point: [rows]. kTeam threads share a row. kHeld packs a thread stay in
// registers, which must cover the row; 0 reads the row twice instead.
template <typename T, typename Q, int kTeam, int kHeld, int kWidth>
__global__ void __launch_bounds__(kThreads)
    quantize_rows_kernel(const T* x, Q* q, float* scale, int32_t* zero_point, int64_t rows, int64_t k) {
  constexpr int kRows = kThreads / kTeam;
  const int lane = threadIdx.x % kTeam;
  const int64_t packs = k / kWidth;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / kTeam;
  for (int64_t row = first; row < rows; row += static_cast<int64_t>(gridDim.x) * kRows) {
    const auto* from = reinterpret_cast<const Pack<T, kWidth>*>(x + row * k);
    auto* to = reinterpret_cast<Pack<Q, kWidth>*>(q + row * k);
    Pack<T, kWidth> held[kHeld == 0 ? 1 : kHeld];
    Range range;
    if constexpr (kHeld == 0) {
      for (int64_t i = lane; i < packs; i += kTeam) range.add(from[i]);
    } else {
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        if (lane + i * kTeam < packs) held[i] = from[lane + i * kTeam];
      }
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        if (lane + i * kTeam < packs) range.add(held[i]);
      }
    }
    range = kTeam == kWarp ? reduce_warp(range) : reduce_block(range);
    const RowScale found = row_scale<Q>(range);
    const float shift = static_cast<float>(found.zero_point);
    if constexpr (kHeld == 0) {
      for (int64_t i = lane; i < packs; i += kTeam) to[i] = quantize<Q>(from[i], found.inverse, shift);
    } else {
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        if (lane + i * kTeam < packs) to[lane + i * kTeam] = quantize<Q>(held[i], found.inverse, shift);
      }
    }
    if (lane == 0) {
      scale[row] = found.scale;
      zero_point[row] = found.zero_point;
    }
  }
}

template <typename T, typename Q>
void quantize_tensor(const T* x, Q* q, const float* scale, const int32_t* zero_point, int64_t n, cudaStream_t stream) {
  constexpr int kWidth = kPackBytes / sizeof(T);
  const bool wide = aligned(x, kPackBytes) && aligned(q, kWidth);
  const int64_t packs = wide ? ceil_div(n, kWidth) : n;
  const int64_t blocks = std::min(ceil_div(packs, kThreads * kInFlight), kMaxBlocks);
  launch(wide ? quantize_tensor_kernel<T, Q, kWidth> : quantize_tensor_kernel<T, Q, 1>, blocks, kThreads, 0, stream, x,
         q, scale, zero_point, n);
}

template <typename T, typename Q>
void quantize_rows(const T* x, Q* q, float* scale, int32_t* zero_point, int64_t rows, int64_t k, cudaStream_t stream) {
  constexpr int kWidth = kPackBytes / sizeof(T);
  constexpr int kWarpHeld = 4, kBlockHeld = 8;
  const bool wide = k % kWidth == 0 && aligned(x, kPackBytes) && aligned(q, kWidth);
  const bool narrow_team = k <= (wide ? kWarp * kWarpHeld * kWidth : kThreads * 2);
  auto* kernel = wide ? quantize_rows_kernel<T, Q, kThreads, 0, kWidth> : quantize_rows_kernel<T, Q, kThreads, 0, 1>;
  if (narrow_team) {
    kernel = wide ? quantize_rows_kernel<T, Q, kWarp, kWarpHeld, kWidth> : quantize_rows_kernel<T, Q, kWarp, 0, 1>;
  } else if (wide && k <= kThreads * kBlockHeld * kWidth) {
    kernel = quantize_rows_kernel<T, Q, kThreads, kBlockHeld, kWidth>;
  }
  const int64_t blocks = std::min(narrow_team ? ceil_div(rows, kThreads / kWarp) : rows, kMaxBlocks);
  launch(kernel, blocks, kThreads, narrow_team ? 0 : kThreads / kWarp * static_cast<int>(sizeof(Range)), stream, x, q,
         scale, zero_point, rows, k);
}

}  // namespace torchaccel::cuda
