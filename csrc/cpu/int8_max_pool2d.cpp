// int8_max_pool2d: checks, allocation, and equal shares of the output pixels for the threads; see pool.inl.
#include <torch/csrc/stable/library.h>

#include "arguments.h"
#include "isa.h"
#include "parallel.h"
#include "pool.h"

namespace torchaccel {
namespace {

Tensor int8_max_pool2d(const Tensor& a, const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
                       const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, bool ceil_mode) {
  const Windows windows = {kernel_size, stride, padding, dilation, ceil_mode};
  const WindowGrid grid = check_windows("int8_max_pool2d", a, windows);
  const bool is_signed = a.scalar_type() == ScalarType::Char;
  const Tensor nhwc = in_nhwc(a);
  const Input in = windows_over(nhwc, windows, grid);
  Tensor out = empty_nhwc(in.n, in.c, in.oh, in.ow, a.scalar_type());
  if (out.numel() == 0) return out;
  uint8_t* to = static_cast<uint8_t*>(out.mutable_data_ptr());
  const Kernels& kernel = kernels();
  const double reads = static_cast<double>(in.rows()) * static_cast<double>(in.kh * in.kw);
  run_shares(in.rows(), reads * (static_cast<double>(in.c) / 32 + 4),
             [&](int64_t begin, int64_t end) { kernel.max_pool(in, is_signed, to, begin, end); });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torchaccel, CPU, m) { m.impl("int8_max_pool2d", TORCH_BOX(&int8_max_pool2d)); }

}  // namespace torchaccel
