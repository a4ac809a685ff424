// int8_conv2d: an implicit matrix product over NHWC activations; see dense.inl.
#include <torch/csrc/stable/library.h>

#include "arguments.h"
#include "dense_run.h"
#include "pack.h"

namespace torchaccel {
namespace {

Tensor int8_conv2d(const Tensor& a, const Tensor& b, const Tensor& colsum, const Tensor& scale_a, const Tensor& scale_b,
                   const OptionalTensor& zero_point, const OptionalTensor& bias, const OptionalTensor& residual,
                   const OptionalTensor& scale_residual, const OptionalTensor& zero_point_residual,
                   const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                   const std::vector<int64_t>& dilation, int64_t groups, const std::string& activation,
                   ScalarType out_dtype, const OptionalTensor& scale_out, const OptionalTensor& zero_point_out,
                   const OptionalTensor& packed) {
  Arguments args("int8_conv2d", a);
  const bool is_signed = is_signed_int8(args.op(), "a", a.scalar_type());
  check_dtype(args.op(), "b", b.scalar_type(), {ScalarType::Char});
  check_device(args.op(), "b", b, a);
  STD_TORCH_CHECK(b.dim() == 4 && groups > 0 && b.size(0) % groups == 0, args.op(), ": b has shape ", shape_of(b),
                  " with groups=", groups, ", accepted is [O, C / groups, kh, kw]");
  STD_TORCH_CHECK(a.dim() == 4 && a.size(1) == b.size(1) * groups, args.op(), ": the input has shape ", shape_of(a),
                  ", accepted is [N, ", b.size(1) * groups, ", H, W]");
  const int64_t n = a.size(0), channels = b.size(0);
  Epilogue epilogue = make_epilogue(
      args, {colsum, scale_a, scale_b, zero_point, bias, activation, out_dtype, scale_out, zero_point_out}, n, channels,
      b.size(1) * b.size(2) * b.size(3), is_signed);
  const Tensor nhwc = in_nhwc(a);
  Input in = make_input(args, nhwc, {stride, padding, dilation}, b.size(2), b.size(3), groups);
  in.zero_point = epilogue.zero_point;
  in.zero_point_step = epilogue.zero_point_step;
  check_padding(args, in, is_signed);
  epilogue.rows_per_scale = in.oh * in.ow;
  Tensor kept_packed = b;
  const DenseWeights weights = dense_weights(args, b, groups, packed, kept_packed);
  Tensor out = empty_nhwc(n, channels, in.oh, in.ow, out_dtype);
  epilogue.out = out.mutable_data_ptr();
  Tensor kept_residual = out;
  set_residual(args, {residual, scale_residual, zero_point_residual}, out, epilogue, kept_residual);
  if (out.numel() > 0) run_dense(in, weights, epilogue);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torchaccel, CPU, m) { m.impl("int8_conv2d", TORCH_BOX(&int8_conv2d)); }

}  // namespace torchaccel
