// int8_avg_pool2d: checks, allocation, and equal shares of pixels x blocks of channels; see pool.inl.
#include <torch/csrc/stable/library.h>

#include "arguments.h"
#include "isa.h"
#include "parallel.h"
#include "pool.h"

namespace torchaccel {
namespace {

Tensor int8_avg_pool2d(const Tensor& a, const Tensor& scale_a, const OptionalTensor& zero_point,
                       const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
                       const std::vector<int64_t>& padding, bool ceil_mode, bool count_include_pad,
                       ScalarType out_dtype, const OptionalTensor& scale_out, const OptionalTensor& zero_point_out) {
  Arguments args("int8_avg_pool2d", a);
  const std::vector<int64_t> no_dilation = {1, 1};
  const Windows windows = {kernel_size, stride, padding, no_dilation, ceil_mode};
  const WindowGrid grid = check_averages(args.op(), a, windows);
  const Tensor nhwc = in_nhwc(a);
  const Input in = windows_over(nhwc, windows, grid);
  Average average = {};
  average.is_signed = a.scalar_type() == ScalarType::Char;
  average.include_padding = count_include_pad;
  average.scale = *args.vector<float>("scale_a", scale_a, ScalarType::Float, 1);
  const int32_t* shift = args.vector<int32_t>("zero_point", zero_point, ScalarType::Int, 1);
  average.zero_point = shift == nullptr ? 0 : *shift;
  average.out = make_output(args, out_dtype, scale_out, zero_point_out);
  Tensor out = empty_nhwc(in.n, in.c, in.oh, in.ow, out_dtype);
  if (out.numel() == 0) return out;
  average.out.data = out.mutable_data_ptr();
  const Kernels& kernel = kernels();
  const double reads = static_cast<double>(in.rows()) * static_cast<double>(in.kh * in.kw);
  run_shares(in.rows() * Average::blocks(in), reads * (static_cast<double>(in.c) / 16 + 4),
             [&](int64_t begin, int64_t end) { kernel.avg_pool(in, average, begin, end); });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torchaccel, CPU, m) { m.impl("int8_avg_pool2d", TORCH_BOX(&int8_avg_pool2d)); }

}  // namespace torchaccel
