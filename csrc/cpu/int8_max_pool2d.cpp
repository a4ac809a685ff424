// int8_max_pool2d: checks, allocation, and equal shares of the output pixels for the threads; see pool.inl.
#include <torch/csrc/stable/library.h>

#include "isa.h"
#include "parallel.h"
#include "pool.h"

namespace torchaccel {
namespace {

Tensor int8_max_pool2d(const Tensor& a, const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
                       const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, bool ceil_mode) {
  Arguments args("int8_max_pool2d", a);
  const bool is_signed = is_signed_int8(args.op(), "a", a.scalar_type());
  STD_TORCH_CHECK(a.dim() == 4, args.op(), ": a has shape ", shape_of(a), ", accepted is [N, C, H, W]");
  const Tensor nhwc = in_nhwc(a);
  const Input in = make_windows(args, nhwc, {kernel_size, stride, padding, dilation, ceil_mode});
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
