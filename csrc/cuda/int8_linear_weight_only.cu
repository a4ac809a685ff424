// int8_linear_weight_only for CUDA: up to 8 rows by gemv.cuh, more of a half type by products.cuh.
#include "gemv.cuh"
#include "product_op.h"

namespace torchaccel::cuda {
namespace {

// 8 rows at a time; for float32, which no tensor core takes, also where there are more.
template <typename X>
void run_gemv(const Call& call, const Matrix& x) {
  constexpr int kMost = kGemvColumns;
  const int64_t k = x.k / int64_t{sizeof(X)};
  const GemvPlan plan =
      gemv_plan(std::min(x.rows, kMost), call.epilogue.channels, k, sizeof(X), call.device.multiprocessors);
  const int64_t bytes = gemv_workspace(plan, std::min(x.rows, kMost), call.epilogue.channels);
  void* workspace = bytes > 0 ? call.workspace(bytes) : nullptr;
  for (int row = 0; row < x.rows; row += kMost) {
    Epilogue e = call.epilogue;
    e.rows = std::min(kMost, x.rows - row);
    e.out = static_cast<uint8_t*>(e.out) + int64_t{row} * e.channels * int64_t{sizeof(X)};
    gemv(reinterpret_cast<const X*>(x.x + row * x.pitch), k, call.weights, e, plan, workspace, call.stream);
  }
}

Tensor int8_linear_weight_only(const Tensor& given, const Tensor& b, const Tensor& scale_b, const OptionalTensor& bias,
                               const std::string& activation, const OptionalTensor& packed) {
  Arguments args("int8_linear_weight_only", given);
  check_dtype(args.op(), "x", given.scalar_type(), {ScalarType::Float, ScalarType::Half, ScalarType::BFloat16});
  const Sizes size = linear_sizes(args.op(), "x", given, b);
  const torch::stable::accelerator::DeviceGuard guard(given.get_device_index());
  const Tensor kept_x = on_boundary(torch::stable::contiguous(given));
  Tensor out = torch::stable::new_empty(kept_x, size.out, given.scalar_type());
  Epilogue e = output_epilogue(args, out, size.m, size.n, activation, std::nullopt, std::nullopt);
  e.scale_b = args.vector<float>("scale_b", scale_b, ScalarType::Float, size.n);
  e.bias = args.vector<float>("bias", bias, ScalarType::Float, size.n);
  bool two_four = false;
  const Weights weights = packed_weights(args, packed, std::nullopt, std::nullopt, size.n, size.k, 1, two_four);
  STD_TORCH_CHECK(!two_four, args.op(), ": packed holds 2:4 weights, accepted are dense ones");
  if (out.numel() == 0) return out;
  OptionalTensor workspace;
  const Call call = call_of(kept_x, weights, e, workspace);
  const int64_t pitch = size.k * size_of(e.out_type);
  const Matrix x = {static_cast<const uint8_t*>(kept_x.data_ptr()), pitch, static_cast<int>(size.m),
                    static_cast<int>(pitch)};
  if (e.out_type == Type::kFloat32) {
    run_gemv<float>(call, x);
  } else if (size.m > kGemvColumns) {
    check_ran(args.op(), run_weight_only(e.out_type, call, x));
  } else if (e.out_type == Type::kFloat16) {
    run_gemv<__half>(call, x);
  } else {
    run_gemv<__nv_bfloat16>(call, x);
  }
  check_launch(args.op());
  return out;
}

}  // namespace
}  // namespace torchaccel::cuda

STABLE_TORCH_LIBRARY_IMPL(torchaccel, CUDA, m) {
  m.impl("int8_linear_weight_only", TORCH_BOX(&torchaccel::cuda::int8_linear_weight_only));
}
