// int8_conv2d for CUDA: checks, allocation and launch on products.cuh.
#include "product_op.h"

namespace torchaccel::cuda {
namespace {

Tensor int8_conv2d(const Tensor& a, const Tensor& b, const Tensor& colsum, const Tensor& scale_a, const Tensor& scale_b,
                   const OptionalTensor& zero_point, const OptionalTensor& bias, const OptionalTensor& residual,
                   const OptionalTensor& scale_residual, const OptionalTensor& zero_point_residual,
                   const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                   const std::vector<int64_t>& dilation, int64_t groups, const std::string& activation,
                   ScalarType out_dtype, const OptionalTensor& scale_out, const OptionalTensor& zero_point_out,
                   const OptionalTensor& packed) {
  Arguments args("int8_conv2d", a);
  STD_TORCH_CHECK(b.dim() == 4 && a.dim() == 4 && groups == 1 && a.size(1) == b.size(1), args.op(), ": a has shape ",
                  shape_of(a), ", b has shape ", shape_of(b), " with groups=", groups,
                  "; the CUDA kernel accepts [N, C, H, W] and [O, C, kh, kw] with one group");
  const torch::stable::accelerator::DeviceGuard guard(a.get_device_index());
  const std::vector<int64_t> kernel = {b.size(2), b.size(3)};
  const Int8Convolution conv = int8_convolution(args, a, b.size(0), {kernel, stride, padding, dilation},
                                                {colsum, scale_a, scale_b, zero_point, bias, scale_out, zero_point_out},
                                                {residual, scale_residual, zero_point_residual}, activation, out_dtype);
  bool two_four = false;
  const Weights weights = packed_weights(args, packed, std::nullopt, std::nullopt, b.size(0), conv.x.k, 1, two_four);
  return run_int8_convolution(args, conv, weights, two_four);
}

}  // namespace
}  // namespace torchaccel::cuda

STABLE_TORCH_LIBRARY_IMPL(torchaccel, CUDA, m) { m.impl("int8_conv2d", TORCH_BOX(&torchaccel::cuda::int8_conv2d)); }
