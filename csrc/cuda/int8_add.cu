// int8_add for CUDA: checks, allocation and launch on add_int8.cuh.
#include "add_int8.cuh"
#include "product_op.h"

namespace torchaccel::cuda {
namespace {

// `x` in the layout of `like`, a dense tensor of its shape: itself, unless it has other strides, gaps or overlaps.
Tensor in_layout(const Tensor& x, const Tensor& like) {
  bool is = true;
  for (int64_t i = 0; i < x.dim(); ++i) is = is && (x.size(i) < 2 || x.stride(i) == like.stride(i));
  if (is) return x;
  Tensor copy = empty_like(like, x.scalar_type());
  torch::stable::copy_(copy, x);
  return copy;
}

Tensor int8_add(const Tensor& a, const Tensor& b, const Tensor& scale_a, const OptionalTensor& zero_point_a,
                const Tensor& scale_b, const OptionalTensor& zero_point_b, const std::string& activation,
                ScalarType out_dtype, const OptionalTensor& scale_out, const OptionalTensor& zero_point_out) {
  Arguments args("int8_add", a);
  check_dtype(args.op(), "a", a.scalar_type(), {ScalarType::Char, ScalarType::Byte});
  check_dtype(args.op(), "b", b.scalar_type(), {ScalarType::Char, ScalarType::Byte});
  check_device(args.op(), "b", b, a);
  STD_TORCH_CHECK(shape_of(a) == shape_of(b), args.op(), ": b has shape ", shape_of(b), ", accepted is ", shape_of(a));
  type_of(args.op(), "out_dtype", out_dtype);
  const torch::stable::accelerator::DeviceGuard guard(a.get_device_index());
  Tensor out = empty_like(a, out_dtype);
  Epilogue e = output_epilogue(args, out, 0, 0, activation, scale_out, zero_point_out);
  e.scale_a = args.vector<float>("scale_a", scale_a, ScalarType::Float, 1);
  e.zero_point = args.vector<int32_t>("zero_point_a", zero_point_a, ScalarType::Int, 1);
  e.scale_residual = args.vector<float>("scale_b", scale_b, ScalarType::Float, 1);
  e.zero_point_residual = args.vector<int32_t>("zero_point_b", zero_point_b, ScalarType::Int, 1);
  if (a.numel() == 0) return out;
  const Tensor first = in_layout(a, out), second = in_layout(b, out);
  e.residual = second.data_ptr();
  e.residual_type = type_of(args.op(), "b", b.scalar_type());
  add(type_of(args.op(), "a", a.scalar_type()), first.data_ptr(), a.numel(), e, current_stream(a));
  check_launch(args.op());
  return out;
}

}  // namespace
}  // namespace torchaccel::cuda

STABLE_TORCH_LIBRARY_IMPL(torchaccel, CUDA, m) { m.impl("int8_add", TORCH_BOX(&torchaccel::cuda::int8_add)); }
