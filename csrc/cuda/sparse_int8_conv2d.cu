// sparse_int8_conv2d for CUDA: checks, allocation and launch on products.cuh.
#include "product_op.h"

namespace torchaccel::cuda {
namespace {

// The kernel reads `packed`, the same weight as tiles; of the canonical blocks only the shapes are used.
Tensor sparse_int8_conv2d(const Tensor& a, const Tensor& values, const Tensor& columns, const Tensor& row_offsets,
                          const Tensor& colsum, const Tensor& scale_a, const Tensor& scale_b,
                          const OptionalTensor& zero_point, const OptionalTensor& bias, const OptionalTensor& residual,
                          const OptionalTensor& scale_residual, const OptionalTensor& zero_point_residual,
                          const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
                          const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                          const std::string& activation, ScalarType out_dtype, const OptionalTensor& scale_out,
                          const OptionalTensor& zero_point_out, const OptionalTensor& packed,
                          const OptionalTensor& tile_columns, const OptionalTensor& tile_offsets) {
  Arguments args("sparse_int8_conv2d", a);
  const int64_t channels = check_blocks(args, a, values, columns, row_offsets, ScalarType::Char);
  const torch::stable::accelerator::DeviceGuard guard(a.get_device_index());
  check_pair(args.op(), "kernel_size", kernel_size, 1);
  const Int8Convolution conv = int8_convolution(args, a, channels, {kernel_size, stride, padding, dilation},
                                                {colsum, scale_a, scale_b, zero_point, bias, scale_out, zero_point_out},
                                                {residual, scale_residual, zero_point_residual}, activation, out_dtype);
  bool two_four = false;
  const Weights weights = packed_weights(args, packed, tile_columns, tile_offsets, channels, conv.x.k, 1, two_four);
  return run_int8_convolution(args, conv, weights, two_four);
}

}  // namespace
}  // namespace torchaccel::cuda

STABLE_TORCH_LIBRARY_IMPL(torchaccel, CUDA, m) {
  m.impl("sparse_int8_conv2d", TORCH_BOX(&torchaccel::cuda::sparse_int8_conv2d));
}
