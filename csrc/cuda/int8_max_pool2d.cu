// int8_max_pool2d for CUDA: checks, allocation and launch on pool_int8.cuh.
#include "pool_op.h"

namespace torchaccel::cuda {
namespace {

Tensor int8_max_pool2d(const Tensor& given, const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
                       const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, bool ceil_mode) {
  constexpr const char* kOp = "int8_max_pool2d";
  const Windows windows = {kernel_size, stride, padding, dilation, ceil_mode};
  const WindowGrid grid = check_windows(kOp, given, windows);
  const torch::stable::accelerator::DeviceGuard guard(given.get_device_index());
  const Tensor a = in_nhwc(given);
  const Pool pool = pool_of(kOp, a, windows, grid);
  Tensor out = empty_nhwc(a, a.size(1), grid.height, grid.width, a.scalar_type());
  if (out.numel() == 0) return out;
  if (a.scalar_type() == ScalarType::Char) {
    max_pool(pool, static_cast<int8_t*>(out.data_ptr()), current_stream(a));
  } else {
    max_pool(pool, static_cast<uint8_t*>(out.data_ptr()), current_stream(a));
  }
  check_launch(kOp);
  return out;
}

}  // namespace
}  // namespace torchaccel::cuda

STABLE_TORCH_LIBRARY_IMPL(torchaccel, CUDA, m) {
  m.impl("int8_max_pool2d", TORCH_BOX(&torchaccel::cuda::int8_max_pool2d));
}
