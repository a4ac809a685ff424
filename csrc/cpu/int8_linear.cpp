// int8_linear: a matrix product as a 1x1 convolution over M images of one pixel.
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
  check_dtype(args.op(), "b", b.scalar_type(), {ScalarType::Char});
  check_device(args.op(), "b", b, a);
  STD_TORCH_CHECK(b.dim() == 2, args.op(), ": b has shape ", shape_of(b), ", accepted is [N, K]");
  const int64_t n = b.size(0), k = b.size(1);
  STD_TORCH_CHECK(a.dim() > 0 && a.size(a.dim() - 1) == k, args.op(), ": a has shape ", shape_of(a), ", b has K=", k);
  int64_t m = 1;
  std::vector<int64_t> shape(a.sizes().begin(), a.sizes().end());
  shape.back() = n;
  for (size_t i = 0; i + 1 < shape.size(); ++i) m *= shape[i];

  Epilogue epilogue = make_epilogue(
      args, {colsum, scale_a, scale_b, zero_point, bias, activation, out_dtype, scale_out, zero_point_out}, m, n, k,
      is_signed);
  Tensor kept_packed = b;
  const DenseWeights weights = dense_weights(args, b, 1, packed, kept_packed);
  const Tensor rows = in_order(a);
  Tensor out = torch::stable::new_empty(a, {shape.data(), shape.size()}, out_dtype);
  epilogue.out = out.mutable_data_ptr();
  Input in = {};
  in.data = static_cast<const uint8_t*>(rows.const_data_ptr());
  in.n = m, in.h = 1, in.w = 1, in.c = k, in.group_channels = k;
  in.kh = in.kw = in.stride_h = in.stride_w = in.dilation_h = in.dilation_w = in.oh = in.ow = 1;
  in.flip = is_signed ? 0x80808080u : 0u;
  if (m > 0 && n > 0) run_dense(in, weights, epilogue);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torchaccel, CPU, m) { m.impl("int8_linear", TORCH_BOX(&int8_linear)); }

}  // namespace torchaccel
