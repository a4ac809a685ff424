// int8_linear: a matrix product as a 1x1 convolution over M images of one pixel; int8_linear_dynamic: the same of
// floats.
#include <torch/csrc/stable/library.h>

#include "arguments.h"
#include "dense_run.h"
#include "pack.h"

namespace torchaccel {
namespace {

Tensor int8_linear(const Tensor& a, const Tensor& b, const Tensor& colsum, const Tensor& scale_a, const Tensor& scale_b,
                   const OptionalTensor& zero_point, const OptionalTensor& bias, const std::string& activation,
                   ScalarType out_dtype, const OptionalTensor& scale_out, const OptionalTensor& zero_point_out,
                   const OptionalTensor& packed) {
  Arguments args("int8_linear", a);
  const bool is_signed = is_signed_int8(args.op(), "a", a.scalar_type());
  const LinearSizes s = linear_sizes(args.op(), "a", a, b);
  Epilogue epilogue = make_epilogue(
      args, {colsum, scale_a, scale_b, zero_point, bias, activation, out_dtype, scale_out, zero_point_out}, s.m, s.n,
      s.k, is_signed);
  Tensor kept_packed = b;
  const DenseWeights weights = dense_weights(args, b, 1, packed, kept_packed);
  const Tensor rows = in_order(a);
  Tensor out = torch::stable::new_empty(a, {s.out.data(), s.out.size()}, out_dtype);
  epilogue.out = out.mutable_data_ptr();
  if (s.m > 0 && s.n > 0) {
    run_dense(matrix_input(rows.const_data_ptr(), s.m, s.k, is_signed), weights, epilogue);
  }
  return out;
}

Tensor int8_linear_dynamic(const Tensor& x, const Tensor& b, const Tensor& colsum, const Tensor& scale_b,
                           const OptionalTensor& bias, const std::string& activation, ScalarType dtype,
                           ScalarType out_dtype, const OptionalTensor& scale_out, const OptionalTensor& zero_point_out,
                           const OptionalTensor& packed) {
  Arguments args("int8_linear_dynamic", x);
  check_dtype(args.op(), "x", x.scalar_type(), {ScalarType::Float});
  const bool is_signed = is_signed_int8(args.op(), "dtype", dtype);
  const LinearSizes s = linear_sizes(args.op(), "x", x, b);
  Epilogue epilogue =
      make_epilogue(args, {colsum, {}, scale_b, {}, bias, activation, out_dtype, scale_out, zero_point_out}, s.m, s.n,
                    s.k, is_signed);
  Tensor kept_packed = b;
  const DenseWeights weights = dense_weights(args, b, 1, packed, kept_packed);
  const Tensor rows = in_order(x);
  Tensor out = torch::stable::new_empty(x, {s.out.data(), s.out.size()}, out_dtype);
  epilogue.out = out.mutable_data_ptr();
  if (s.m > 0 && s.n > 0) {
    run_dense_dynamic({static_cast<const float*>(rows.const_data_ptr()), s.m, s.k, is_signed}, weights, epilogue);
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torchaccel, CPU, m) {
  m.impl("int8_linear", TORCH_BOX(&int8_linear));
  m.impl("int8_linear_dynamic", TORCH_BOX(&int8_linear_dynamic));
}

}  // namespace torchaccel
