// A matrix product of rows that are quantized on the way: each panel of 64 rows when its first unit is due, so that no
// int8 tensor travels through memory. Threads that share a panel each quantize it for themselves: cheaper than waiting.
#pragma once

#include "dense.inl"
#include "quantize.inl"

static void dense_dynamic(const FloatRows& x, const DenseWeights& weights, const Epilogue& e, int64_t begin,
                          int64_t end, uint8_t* scratch) {
  float* scale = reinterpret_cast<float*>(scratch);  // [kPanelRows]
  int32_t* zero_point = reinterpret_cast<int32_t*>(scratch + kPanelRows * 4);
  uint8_t* q = scratch + kPanelRows * 8;
  const int64_t units = weights.units();
  Input in = matrix_input(q, kPanelRows, x.k, x.is_signed);
  Epilogue local = e;
  local.scale_a = scale;
  local.zero_point = zero_point;
  local.scale_a_step = local.zero_point_step = 1;
  for (int64_t task = begin; task < end;) {
    const int64_t row = task / units * kPanelRows, first = task % units;
    const int64_t last = end - task < units - first ? first + end - task : units;
    in.n = x.rows - row < kPanelRows ? x.rows - row : kPanelRows;
    quantize_rows(x.data + row * x.k, in.n, x.k, x.is_signed, q, scale, zero_point);
    local.out = static_cast<uint8_t*>(e.out) + row * e.channels * size_of(e.out_type);
    dense(in, weights, local, first, last, scratch + x.quantized_bytes());
    task += last - first;
  }
}
