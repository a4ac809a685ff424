// int8_linear for CUDA: checks, allocation and launch on products.cuh.
#include "product_op.h"

namespace torchaccel::cuda {
namespace {

Tensor int8_linear(const Tensor& given, const Tensor& b, const Tensor& colsum, const Tensor& scale_a,
                   const Tensor& scale_b, const OptionalTensor& zero_point, const OptionalTensor& bias,
                   const std::string& activation, ScalarType out_dtype, const OptionalTensor& scale_out,
                   const OptionalTensor& zero_point_out, const OptionalTensor& packed) {
  Arguments args("int8_linear", given);
  STD_TORCH_CHECK(b.dim() == 2 && given.dim() > 0 && given.size(given.dim() - 1) == b.size(1), args.op(),
                  ": a has shape ", shape_of(given), ", b has shape ", shape_of(b),
                  "; accepted are [..., K] and [N, K]");
  const int64_t n = b.size(0), k = b.size(1);
  const bool is_signed = is_signed_int8(args.op(), given.scalar_type(), k);
  std::vector<int64_t> sizes(given.sizes().begin(), given.sizes().end());
  sizes.back() = n;
  int64_t m = 1;
  for (size_t i = 0; i + 1 < sizes.size(); ++i) m *= sizes[i];
  check_range(args.op(), m, n, k);
  const torch::stable::accelerator::DeviceGuard guard(given.get_device_index());
  const Tensor a = on_boundary(torch::stable::contiguous(given));
  Tensor out = torch::stable::new_empty(a, sizes, out_dtype);
  const Epilogue e = int8_epilogue(args, {colsum, scale_a, scale_b, zero_point, bias, scale_out, zero_point_out}, out,
                                   m, 1, n, activation);
  bool two_four = false;
  const Weights weights = packed_weights(args, packed, std::nullopt, std::nullopt, n, k, 1, two_four);
  STD_TORCH_CHECK(!two_four || k % 16 == 0, args.op(), ": 2:4 weights need K divisible by 16, given is ", k);
  if (out.numel() == 0) return out;
  const Matrix x = {static_cast<const uint8_t*>(a.data_ptr()), k, static_cast<int>(m), static_cast<int>(k)};
  OptionalTensor workspace;
  const Call call = call_of(a, weights, e, workspace);
  check_ran(args.op(), two_four ? run_two_four(is_signed, call, x) : run_dense(is_signed, call, x));
  return out;
}

}  // namespace
}  // namespace torchaccel::cuda

STABLE_TORCH_LIBRARY_IMPL(torchaccel, CUDA, m) { m.impl("int8_linear", TORCH_BOX(&torchaccel::cuda::int8_linear)); }
