// int8_avg_pool2d for CUDA: checks, allocation and launch on pool_int8.cuh.
#include "pool_op.h"

namespace torchaccel::cuda {
namespace {

Tensor int8_avg_pool2d(const Tensor& given, const Tensor& scale_a, const OptionalTensor& zero_point,
                       const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
                       const std::vector<int64_t>& padding, bool ceil_mode, bool count_include_pad,
                       ScalarType out_dtype, const OptionalTensor& scale_out, const OptionalTensor& zero_point_out) {
  Arguments args("int8_avg_pool2d", given);
  const std::vector<int64_t> no_dilation = {1, 1};
  const Windows windows = {kernel_size, stride, padding, no_dilation, ceil_mode};
  const WindowGrid grid = check_averages(args.op(), given, windows);
  const torch::stable::accelerator::DeviceGuard guard(given.get_device_index());
  const Tensor a = in_nhwc(given);
  const Pool pool = pool_of(args.op(), a, windows, grid);
  type_of(args.op(), "out_dtype", out_dtype);
  Tensor out = empty_nhwc(a, a.size(1), grid.height, grid.width, out_dtype);
  Epilogue e = output_epilogue(args, out, 0, a.size(1), "none", scale_out, zero_point_out);
  e.scale_a = args.vector<float>("scale_a", scale_a, ScalarType::Float, 1);
  e.zero_point = args.vector<int32_t>("zero_point", zero_point, ScalarType::Int, 1);
  if (out.numel() == 0) return out;
  const int bytes = static_cast<int>(size_of(e.out_type));
  if (a.scalar_type() == ScalarType::Char) {
    avg_pool<int8_t>(pool, count_include_pad, e, bytes, current_stream(a));
  } else {
    avg_pool<uint8_t>(pool, count_include_pad, e, bytes, current_stream(a));
  }
  check_launch(args.op());
  return out;
}

}  // namespace
}  // namespace torchaccel::cuda

STABLE_TORCH_LIBRARY_IMPL(torchaccel, CUDA, m) {
  m.impl("int8_avg_pool2d", TORCH_BOX(&torchaccel::cuda::int8_avg_pool2d));
}
