// int8_linear for CUDA: checks, allocation and launch on gemv.cuh and products.cuh.
#include "gemv.cuh"
#include "product_op.h"

namespace torchaccel::cuda {
namespace {

template <typename X>
void run_gemv(const Call& call, const Matrix& x) {
  const GemvPlan plan = gemv_plan(x.rows, call.epilogue.channels, x.k, 1, call.device.multiprocessors);
  const int64_t bytes = gemv_workspace(plan, x.rows, call.epilogue.channels);
  gemv(reinterpret_cast<const X*>(x.x), x.k, call.weights, call.epilogue, plan,
       bytes > 0 ? call.workspace(bytes) : nullptr, call.stream);
}

Tensor int8_linear(const Tensor& given, const Tensor& b, const Tensor& colsum, const Tensor& scale_a,
                   const Tensor& scale_b, const OptionalTensor& zero_point, const OptionalTensor& bias,
                   const std::string& activation, ScalarType out_dtype, const OptionalTensor& scale_out,
                   const OptionalTensor& zero_point_out, const OptionalTensor& packed) {
  Arguments args("int8_linear", given);
  const Sizes size = linear_sizes(args.op(), "a", given, b);
  const bool is_signed = is_signed_int8(args.op(), given.scalar_type(), size.k);
  const torch::stable::accelerator::DeviceGuard guard(given.get_device_index());
  const Tensor a = on_boundary(torch::stable::contiguous(given));
  Tensor out = torch::stable::new_empty(a, size.out, out_dtype);
  const Epilogue e = int8_epilogue(args, {colsum, scale_a, scale_b, zero_point, bias, scale_out, zero_point_out}, out,
                                   size.m, 1, size.n, activation);
  bool two_four = false;
  const Weights weights = packed_weights(args, packed, std::nullopt, std::nullopt, size.n, size.k, 1, two_four);
  STD_TORCH_CHECK(!two_four || size.k % 16 == 0, args.op(), ": 2:4 weights need K divisible by 16, given is ", size.k);
  if (out.numel() == 0) return out;
  const Matrix x = {static_cast<const uint8_t*>(a.data_ptr()), size.k, static_cast<int>(size.m),
                    static_cast<int>(size.k)};
  OptionalTensor workspace;
  const Call call = call_of(a, weights, e, workspace);
  if (size.m <= kGemvColumns && !two_four) {
    is_signed ? run_gemv<int8_t>(call, x) : run_gemv<uint8_t>(call, x);
    check_launch(args.op());
  } else {
    check_ran(args.op(), two_four ? run_two_four(is_signed, call, x) : run_dense(is_signed, call, x));
  }
  return out;
}

}  // namespace
}  // namespace torchaccel::cuda

STABLE_TORCH_LIBRARY_IMPL(torchaccel, CUDA, m) { m.impl("int8_linear", TORCH_BOX(&torchaccel::cuda::int8_linear)); }
