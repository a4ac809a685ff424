// sparse_conv2d for CUDA, float16 and bfloat16: checks, allocation and launch on products.cuh.
#include "product_op.h"

namespace torchaccel::cuda {
namespace {

// The kernel reads `packed`, the same weight as tiles; of the canonical blocks only the shapes are used.
Tensor sparse_conv2d(const Tensor& x, const Tensor& values, const Tensor& columns, const Tensor& row_offsets,
                     const OptionalTensor& bias, const OptionalTensor& residual,
                     const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
                     const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                     const std::string& activation, const OptionalTensor& packed, const OptionalTensor& tile_columns,
                     const OptionalTensor& tile_offsets) {
  Arguments args("sparse_conv2d", x);
  const ScalarType dtype = x.scalar_type();
  check_dtype(args.op(), "x", dtype, {ScalarType::Half, ScalarType::BFloat16});
  const int64_t channels = check_blocks(args, x, values, columns, row_offsets, dtype);
  STD_TORCH_CHECK(x.size(1) % 8 == 0, args.op(), ": x has C=", x.size(1), ", the CUDA kernel accepts multiples of 8");
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Tensor nhwc = on_boundary(in_nhwc(x));
  check_pair(args.op(), "kernel_size", kernel_size, 1);
  const Geometry geometry = {kernel_size, stride, padding, dilation};
  const Image image = image_of(args.op(), nhwc, geometry, 2);
  check_range(args.op(), image.rows, channels, image.k);
  const Tensor out = empty_nhwc(x, channels, out_height(x, geometry), out_width(x, geometry), dtype);
  Epilogue e = output_epilogue(args, out, image.rows, channels, activation, std::nullopt, std::nullopt);
  const Type type = e.out_type;
  e.bias_type = type;
  e.bias = type == Type::kFloat16 ? static_cast<const void*>(args.vector<__half>("bias", bias, dtype, channels))
                                  : args.vector<__nv_bfloat16>("bias", bias, dtype, channels);
  if (residual) check_dtype(args.op(), "residual", residual->scalar_type(), {dtype});
  const OptionalTensor kept = set_residual(args, residual, std::nullopt, std::nullopt, out, e);
  bool two_four = false;
  const Weights weights = packed_weights(args, packed, tile_columns, tile_offsets, channels, image.k, 2, two_four);
  if (out.numel() == 0) return out;
  OptionalTensor workspace;
  const Call call = call_of(nhwc, weights, e, workspace);
  check_ran(args.op(), run_half(type, two_four, call, image));
  return out;
}

}  // namespace
}  // namespace torchaccel::cuda

STABLE_TORCH_LIBRARY_IMPL(torchaccel, CUDA, m) { m.impl("sparse_conv2d", TORCH_BOX(&torchaccel::cuda::sparse_conv2d)); }
