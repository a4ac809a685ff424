// norm_quantize_int8 and norm_quantize_int8_dynamic for CUDA: checks, allocation and launch on norm_quantize.cuh.
#include <tuple>

#include "../common/check.h"
#include "norm_quantize.cuh"
#include "op.h"

namespace torchaccel::cuda {
namespace {

// What both ops take.
struct Norm {
  const OptionalTensor& weight;
  const OptionalTensor& bias;
  double eps;
  bool centred;
};

struct Output {
  Tensor& q;
  const float* given_scale;
  const int32_t* given_zero_point;
  float* scale;
  int32_t* zero_point;
};

template <typename T, typename Q>
void run(const Norm& norm, const T* weight, const T* bias, const Tensor& x, int64_t rows, int64_t k,
         const Output& out) {
  const NormQuantize<T, Q> n = {static_cast<const T*>(x.data_ptr()),
                                weight,
                                bias,
                                static_cast<float>(norm.eps),
                                norm.centred,
                                out.given_scale,
                                out.given_zero_point,
                                static_cast<Q*>(out.q.data_ptr()),
                                out.scale,
                                out.zero_point,
                                rows,
                                k};
  norm_quantize(n, current_stream(x));
}

// x: contiguous, with at least one row.
void run(Arguments& args, const Norm& norm, const Tensor& x, int64_t rows, int64_t k, const Output& out) {
  const auto with = [&](auto element, auto integer) {
    using T = decltype(element);
    const auto* weight = args.vector<T>("weight", norm.weight, x.scalar_type(), k);
    const auto* bias = args.vector<T>("bias", norm.bias, x.scalar_type(), k);
    if (rows != 0) run<T, decltype(integer)>(norm, weight, bias, x, rows, k, out);
  };
  const auto with_input = [&](auto integer) {
    if (x.scalar_type() == ScalarType::Float) return with(float{}, integer);
    if (x.scalar_type() == ScalarType::Half) return with(__half{}, integer);
    with(__nv_bfloat16{}, integer);
  };
  out.q.scalar_type() == ScalarType::Char ? with_input(int8_t{}) : with_input(uint8_t{});
  check_launch(args.op());
}

void check(const char* op, const Tensor& x, double eps, ScalarType dtype) {
  check_dtype(op, "x", x.scalar_type(), {ScalarType::Float, ScalarType::Half, ScalarType::BFloat16});
  check_dtype(op, "dtype", dtype, {ScalarType::Char, ScalarType::Byte});
  STD_TORCH_CHECK(x.dim() > 0, op, ": x has no dimensions, accepted is [..., K]");
  STD_TORCH_CHECK(eps >= 0 && eps <= FLT_MAX, op, ": eps is ", eps, ", accepted is a finite number of at least 0");
}

int64_t rows_of(const Tensor& x) {
  int64_t rows = 1;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) rows *= x.size(i);
  return rows;
}

Tensor norm_quantize_int8(const Tensor& given, const OptionalTensor& weight, const OptionalTensor& bias, double eps,
                          bool centred, const Tensor& scale, const OptionalTensor& zero_point, ScalarType dtype) {
  Arguments args("norm_quantize_int8", given);
  check(args.op(), given, eps, dtype);
  const auto* step = args.one<float>("scale", scale, ScalarType::Float);
  const auto* shift = args.one<int32_t>("zero_point", zero_point, ScalarType::Int);
  const torch::stable::accelerator::DeviceGuard guard(given.get_device_index());
  const Tensor x = in_order(given);
  Tensor q = torch::stable::new_empty(x, x.sizes(), dtype);
  run(args, {weight, bias, eps, centred}, x, rows_of(x), x.size(x.dim() - 1), {q, step, shift, nullptr, nullptr});
  return q;
}

std::tuple<Tensor, Tensor, Tensor> norm_quantize_int8_dynamic(const Tensor& given, const OptionalTensor& weight,
                                                              const OptionalTensor& bias, double eps, bool centred,
                                                              ScalarType dtype) {
  Arguments args("norm_quantize_int8_dynamic", given);
  check(args.op(), given, eps, dtype);
  const torch::stable::accelerator::DeviceGuard guard(given.get_device_index());
  const Tensor x = in_order(given);
  const int64_t rows = rows_of(x);
  Tensor q = torch::stable::new_empty(x, x.sizes(), dtype);
  Tensor scale = torch::stable::new_empty(x, {rows}, ScalarType::Float);
  Tensor zero_point = torch::stable::new_empty(x, {rows}, ScalarType::Int);
  run(args, {weight, bias, eps, centred}, x, rows, x.size(x.dim() - 1),
      {q, nullptr, nullptr, static_cast<float*>(scale.data_ptr()), static_cast<int32_t*>(zero_point.data_ptr())});
  return {q, scale, zero_point};
}

}  // namespace
}  // namespace torchaccel::cuda

STABLE_TORCH_LIBRARY_IMPL(torchaccel, CUDA, m) {
  m.impl("norm_quantize_int8", TORCH_BOX(&torchaccel::cuda::norm_quantize_int8));
  m.impl("norm_quantize_int8_dynamic", TORCH_BOX(&torchaccel::cuda::norm_quantize_int8_dynamic));
}
