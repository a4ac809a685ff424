// The dense kernel over all threads, for int8_linear, int8_linear_dynamic and int8_conv2d.
#pragma once

#include "isa.h"
#include "parallel.h"

namespace torchaccel {

// Clocks of the whole product on one thread.
inline double dense_cycles(int64_t rows, int64_t channels, int64_t depth) {
  // 64 products a clock, and about a clock for each output in the epilogue.
  return static_cast<double>(rows) * static_cast<double>(channels) * (static_cast<double>(depth) / 64 + 1);
}

inline void run_dense(const Input& in, const DenseWeights& weights, const Epilogue& epilogue) {
  const int64_t tasks = in.panels() * weights.groups * weights.units();
  const Kernels& kernel = kernels();
  run_shares(tasks, dense_cycles(in.rows(), epilogue.channels, in.depth()), [&](int64_t begin, int64_t end) {
    const Scratch scratch(in.panel_bytes() + in.gather_bytes());
    kernel.dense(in, weights, epilogue, begin, end, scratch.data());
  });
}

inline void run_dense_dynamic(const FloatRows& x, const DenseWeights& weights, const Epilogue& epilogue) {
  const Input in = matrix_input(nullptr, x.rows, x.k, x.is_signed);
  const Kernels& kernel = kernels();
  run_shares(x.panels() * weights.units(), dense_cycles(x.rows, epilogue.channels, x.k),
             [&](int64_t begin, int64_t end) {
               const Scratch scratch(x.quantized_bytes() + in.panel_bytes() + in.gather_bytes());
               kernel.dense_dynamic(x, weights, epilogue, begin, end, scratch.data());
             });
}

}  // namespace torchaccel
