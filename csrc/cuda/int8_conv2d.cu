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
  const int64_t channels = b.size(0);
  const bool is_signed = is_signed_int8(args.op(), a.scalar_type(), b.size(1) * b.size(2) * b.size(3));
  const torch::stable::accelerator::DeviceGuard guard(a.get_device_index());
  const Tensor nhwc = on_boundary(in_nhwc(a));
  const std::vector<int64_t> kernel = {b.size(2), b.size(3)};
  const Geometry geometry = {kernel, stride, padding, dilation};
  Image x = image_of(args.op(), nhwc, geometry, 1);
  check_range(args.op(), x.rows, channels, x.k);
  Tensor out = empty_nhwc(a, channels, out_height(a, geometry), out_width(a, geometry), out_dtype);
  Epilogue e = int8_epilogue(args, {colsum, scale_a, scale_b, zero_point, bias, scale_out, zero_point_out}, out,
                             a.size(0), static_cast<int>(x.by_image.divisor), channels, activation);
  const OptionalTensor kept = set_residual(args, residual, scale_residual, zero_point_residual, out, e);
  x.zero_point = e.zero_point;
  x.per_image = e.zero_rows != 0;
  bool two_four = false;
  const Weights weights = packed_weights(args, packed, std::nullopt, std::nullopt, channels, x.k, 1, two_four);
  STD_TORCH_CHECK(!two_four || x.channels % 16 == 0, args.op(), ": 2:4 weights need C divisible by 16, given is ",
                  x.channels);
  if (out.numel() == 0) return out;
  OptionalTensor workspace;
  const Call call = call_of(a, weights, e, workspace);
  if (is_matrix(geometry)) {
    const Matrix matrix = as_matrix(x);
    check_ran(args.op(), two_four ? run_two_four(is_signed, call, matrix) : run_dense(is_signed, call, matrix));
  } else {
    check_ran(args.op(), two_four ? run_two_four(is_signed, call, x) : run_dense(is_signed, call, x));
  }
  return out;
}

}  // namespace
}  // namespace torchaccel::cuda

STABLE_TORCH_LIBRARY_IMPL(torchaccel, CUDA, m) { m.impl("int8_conv2d", TORCH_BOX(&torchaccel::cuda::int8_conv2d)); }
