// norm_quantize_int8: LayerNorm or RMSNorm and the quantization of its rows, in one pass. Free of torch headers.
//
// A warp (short rows) or a block (long ones) holds a row in registers, 32 elements a thread: the mean, then the squared
// deviations from it (never E[x^2] - E[x]^2, which cancels), then the range of the result where the scale is not given.
// A row beyond 8192 elements is read again for each of these, from L2 mostly. Bound by memory: 5 bytes an element of
// float32, 3 of a half type; weight and bias stay in L2. Offsets are 64-bit.
#pragma once

#include "quantize_int8.cuh"

namespace torchaccel::cuda {

// What becomes of a row: (x - mean) / sqrt(variance + eps) * weight + bias, or without the mean for RMSNorm.
template <typename T, typename Q>
struct NormQuantize {
  const T* x;       // [rows, k]
  const T* weight;  // [k]; null is 1
  const T* bias;    // [k]; null is 0
  float eps;
  bool centred;                     // LayerNorm
  const float* given_scale;         // [1]; null where each row gets its own
  const int32_t* given_zero_point;  // [1]; null is 0
  Q* q;                             // [rows, k]
  float* scale;                     // [rows], where none is given
  int32_t* zero_point;              // [rows], likewise
  int64_t rows, k;
};

// The sum over kTeam threads, for each of them, in a fixed order. The first barrier keeps `shared` until its last
// readers are done.
template <int kTeam>
__device__ inline float reduce_sum(float sum) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, lanes));
  if constexpr (kTeam > kWarp) {
    auto* shared = reinterpret_cast<float*>(ptx::shared_memory());  // one a warp
    __syncthreads();
    if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = sum;
    __syncthreads();
    sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kTeam / kWarp; ++i) sum = __fadd_rn(sum, shared[i]);
  }
  return sum;
}

// The elements of a row that one thread of kTeam has, kWidth neighbours at a time: in registers where kHeld such packs
// cover the row, else (0) read again by each walk.
template <typename T, int kTeam, int kHeld, int kWidth>
class Row {
 public:
  __device__ Row(const T* row, int64_t k, int lane)
      : from_(reinterpret_cast<const Pack<T, kWidth>*>(row)), packs_(k / kWidth), lane_(lane) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (lane + i * kTeam < packs_) held_[i] = from_[lane + i * kTeam];
    }
  }

  // Calls use(index of the pack, the pack).
  template <typename Use>
  __device__ void each(Use use) const {
    if constexpr (kHeld == 0) {
      for (int64_t i = lane_; i < packs_; i += kTeam) use(i, from_[i]);
    } else {
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        if (lane_ + i * kTeam < packs_) use(lane_ + i * kTeam, held_[i]);
      }
    }
  }

 private:
  const Pack<T, kWidth>* from_;
  int64_t packs_;
  int lane_;
  Pack<T, kWidth> held_[kHeld == 0 ? 1 : kHeld];
};

template <typename T, typename Q, int kTeam, int kHeld, int kWidth>
__global__ void __launch_bounds__(kThreads) norm_quantize_kernel(NormQuantize<T, Q> n) {
  constexpr int kRows = kThreads / kTeam;
  const int lane = threadIdx.x % kTeam;
  const float count = static_cast<float>(n.k);
  const auto* weight = reinterpret_cast<const Pack<T, kWidth>*>(n.weight);
  const auto* bias = reinterpret_cast<const Pack<T, kWidth>*>(n.bias);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / kTeam;
  for (int64_t index = first; index < n.rows; index += static_cast<int64_t>(gridDim.x) * kRows) {
    const Row<T, kTeam, kHeld, kWidth> row(n.x + index * n.k, n.k, lane);

    float mean = 0.0f;
    if (n.centred) {
      float sum = 0.0f;
      row.each([&](int64_t, const Pack<T, kWidth>& x) {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) sum = __fadd_rn(sum, to_float(x.values[i]));
      });
      mean = __fdiv_rn(reduce_sum<kTeam>(sum), count);
    }
    float squares = 0.0f;
    row.each([&](int64_t, const Pack<T, kWidth>& x) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const float deviation = __fadd_rn(to_float(x.values[i]), -mean);
        squares = __fadd_rn(squares, __fmul_rn(deviation, deviation));
      }
    });
    const float variance = __fdiv_rn(reduce_sum<kTeam>(squares), count);
    const float factor = __frcp_rn(__fsqrt_rn(__fadd_rn(variance, n.eps)));
    const auto normalized = [&](int64_t at, const Pack<T, kWidth>& x) {
      Pack<float, kWidth> y;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) y.values[i] = __fmul_rn(__fadd_rn(to_float(x.values[i]), -mean), factor);
      if (weight != nullptr) {
        const Pack<T, kWidth> w = weight[at];
#pragma unroll
        for (int i = 0; i < kWidth; ++i) y.values[i] = __fmul_rn(y.values[i], to_float(w.values[i]));
      }
      if (bias != nullptr) {
        const Pack<T, kWidth> b = bias[at];
#pragma unroll
        for (int i = 0; i < kWidth; ++i) y.values[i] = __fadd_rn(y.values[i], to_float(b.values[i]));
      }
      return y;
    };

    float inverse, shift;
    if (n.given_scale != nullptr) {
      inverse = __frcp_rn(*n.given_scale);
      shift = n.given_zero_point != nullptr ? static_cast<float>(*n.given_zero_point) : 0.0f;
    } else {
      Range range;
      row.each([&](int64_t at, const Pack<T, kWidth>& x) { range.add(normalized(at, x)); });
      const RowScale found = row_scale<Q>(kTeam == kWarp ? reduce_warp(range) : reduce_block(range));
      inverse = found.inverse;
      shift = static_cast<float>(found.zero_point);
      if (lane == 0) {
        n.scale[index] = found.scale;
        n.zero_point[index] = found.zero_point;
      }
    }
    auto* to = reinterpret_cast<Pack<Q, kWidth>*>(n.q + index * n.k);
    row.each([&](int64_t at, const Pack<T, kWidth>& x) { to[at] = quantize<Q>(normalized(at, x), inverse, shift); });
  }
}

template <typename T, typename Q>
void norm_quantize(const NormQuantize<T, Q>& n, cudaStream_t stream) {
  constexpr int kWidth = kPackBytes / sizeof(T), kHeld = 32;  // elements a thread
  const bool wide = n.k % kWidth == 0 && aligned(n.x, kPackBytes) && aligned(n.q, kWidth) &&
                    aligned(n.weight, kPackBytes) && aligned(n.bias, kPackBytes);
  const bool narrow_team = n.k <= kWarp * kHeld;
  auto* kernel = wide ? norm_quantize_kernel<T, Q, kThreads, 0, kWidth> : norm_quantize_kernel<T, Q, kThreads, 0, 1>;
  if (narrow_team) {
    kernel =
        wide ? norm_quantize_kernel<T, Q, kWarp, kHeld / kWidth, kWidth> : norm_quantize_kernel<T, Q, kWarp, kHeld, 1>;
  } else if (n.k <= kThreads * kHeld) {
    kernel = wide ? norm_quantize_kernel<T, Q, kThreads, kHeld / kWidth, kWidth>
                  : norm_quantize_kernel<T, Q, kThreads, kHeld, 1>;
  }
  const int64_t blocks = std::min(narrow_team ? ceil_div(n.rows, kThreads / kWarp) : n.rows, kMaxBlocks);
  launch(kernel, blocks, kThreads, narrow_team ? 0 : kThreads / kWarp * static_cast<int>(sizeof(Range)), stream, n);
}

}  // namespace torchaccel::cuda
