// int8_add: the sum of two quantized tensors in one order of memory. Free of torch headers.
//
// To the epilogue of products it is a row of sums `a` with column sum and scale 1, and a residual `b`. A thread takes
// kAddWidth elements; memory-bound, 3 bytes an element where the output is int8. Offsets are 64-bit.
#pragma once

#include "epilogue.cuh"
#include "launch.cuh"

namespace torchaccel::cuda {

constexpr int kAddThreads = 256;
constexpr int kAddWidth = 16;
constexpr int kAddRow = kAddThreads * kAddWidth;  // elements of a block, a row to the epilogue

// a, b (e.residual), out: n elements, none for the last threads of the last block; e.wide: they start at whole vectors.
__global__ void __launch_bounds__(kAddThreads) add_kernel(Type type, const void* a, int64_t n, Epilogue e) {
  const int row = static_cast<int>(blockIdx.x), channel = static_cast<int>(threadIdx.x) * kAddWidth;
  const int64_t index = static_cast<int64_t>(row) * kAddRow + channel;
  ChannelTerms<kAddWidth> c = {};  // no bias
  c.channel = channel;
  c.count = n - index < kAddWidth ? static_cast<int>(n - index) : kAddWidth;
  c.whole = e.wide && c.count == kAddWidth;
  float x[kAddWidth];
  load(type, a, index, c.whole, c.count, x);
  int32_t sums[kAddWidth];
#pragma unroll
  for (int i = 0; i < kAddWidth; ++i) {
    sums[i] = static_cast<int32_t>(x[i]);
    c.scale[i] = 1.0f;
    c.colsum[i] = 1;
  }
  finish(e, sums, row, c);
}

// e: scale_a, zero_point, the residual and the output. The rest is set here.
inline void add(Type type, const void* a, int64_t n, Epilogue e, cudaStream_t stream) {
  e.channels = kAddRow;
  e.wide = aligned(a, kAddWidth) && aligned(e.residual, kAddWidth) && aligned(e.out, 16);
  launch(add_kernel, ceil_div(n, kAddRow), kAddThreads, 0, stream, type, a, n, e);
}

}  // namespace torchaccel::cuda
