// One product on the emulated GPU, behind a C function for ctypes; products_*.cpp say which are compiled.
#pragma once

#include "products.cuh"

namespace torchaccel::cuda {

// How a tiling would make a product, and what the cost model knows of it.
struct Planned {
  double cycles;
  int blocks, whole;
  TilingFacts facts;
};

// What product_case.py fills in; the same fields in the same order.
struct Case {
  int tiling, blocks, whole;      // as in Plan; tiling -1: as the library would choose; blocks 0: as it would share
  int is_signed, two_four, half;  // half: 0 none, 1 float16, 2 bfloat16
  int multiprocessors;
  Weights weights;
  Epilogue epilogue;
  void* partial;
  const uint8_t* x;
  int64_t pitch;  // of a matrix, or 0: an image
  int rows, k;
  int images, height, width, channels;  // channels in bytes
  int kernel[2], stride[2], padding[2], dilation[2], out[2];
  Planned* planned;  // where the plan goes, and nothing runs; or null
};

// The number of tilings, where `tiling` is past the last; the tiling, where it was to be planned; else runs it.
template <typename P, typename Operand>
int run_case(const Case& c, const Operand& x) {
  if (c.tiling >= P::kTilings) return P::kTilings;
  const int64_t steps = steps_of(c.weights);
  const Device device = {c.multiprocessors, 227 << 10, true};
  Plan plan{{c.tiling, c.blocks, c.whole, 0.0}};
  if (c.tiling < 0) {
    plan = P::plan(x.rows, c.epilogue.channels, steps, device);
  } else if (c.blocks == 0) {
    plan = {choose(P::kFacts + c.tiling, 1, x.rows, c.epilogue.channels, steps, device)};
    plan.tiling = c.tiling;
  }
  if (c.planned != nullptr) {
    *c.planned = {plan.cycles, plan.blocks, plan.whole, P::kFacts[plan.tiling]};
    return plan.tiling;
  }
  P::run(plan, c.weights, x, c.epilogue, steps, c.partial, nullptr);
  return P::kTilings;
}

inline Matrix matrix_of(const Case& c) { return {c.x, c.pitch, c.rows, c.k}; }

inline Image image_of(const Case& c) {
  Image x = {};
  x.x = c.x;
  x.rows = c.rows, x.k = c.k;
  x.height = c.height, x.width = c.width, x.channels = c.channels;
  x.kernel_h = c.kernel[0], x.kernel_w = c.kernel[1];
  x.stride_h = c.stride[0], x.stride_w = c.stride[1];
  x.padding_h = c.padding[0], x.padding_w = c.padding[1];
  x.dilation_h = c.dilation[0], x.dilation_w = c.dilation[1];
  x.by_image = Divider(static_cast<uint32_t>(c.out[0] * c.out[1]));
  x.by_width = Divider(static_cast<uint32_t>(c.out[1]));
  x.by_channels = Divider(static_cast<uint32_t>(c.channels));
  x.by_kernel_width = Divider(static_cast<uint32_t>(c.kernel[1]));
  x.zero_point = c.epilogue.zero_point;
  x.per_image = c.epilogue.zero_rows != 0;
  return x;
}

template <typename X, typename Operand>
int run_dense_case(const Case& c, const Operand& x, int64_t row_bytes) {
  if (row_bytes % 16 == 0) return run_case<DenseProduct<X, Operand>>(c, x);
  if (row_bytes % 4 == 0) return run_case<OddProduct<X, Operand, 4>>(c, x);
  return run_case<OddProduct<X, Operand, 1>>(c, x);
}

}  // namespace torchaccel::cuda
