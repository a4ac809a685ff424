// The dense kernel over all threads, for int8_linear and int8_conv2d.
#pragma once

#include "isa.h"
#include "parallel.h"

namespace torchaccel {

inline void run_dense(const Input& in, const DenseWeights& weights, const Epilogue& epilogue) {
  const int64_t tasks = in.panels() * weights.groups * weights.units();
  // 64 products a clock, and about a clock for each output in the epilogue.
  const double outputs = static_cast<double>(in.rows()) * static_cast<double>(epilogue.channels);
  const double cycles = outputs * (static_cast<double>(in.depth()) / 64 + 1);
  const Kernels& kernel = kernels();
  run_shares(tasks, cycles, [&](int64_t begin, int64_t end) {
    const Scratch scratch(in.panel_bytes() + in.gather_bytes());
    kernel.dense(in, weights, epilogue, begin, end, scratch.data());
  });
}

}  // namespace torchaccel
