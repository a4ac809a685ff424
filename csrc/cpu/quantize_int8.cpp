// quantize_int8 and quantize_int8_dynamic: checks, allocation, and equal shares for the threads. Memory-bound.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "arguments.h"
#include "isa.h"
#include "parallel.h"

namespace torchaccel {
namespace {

Tensor quantize_int8(const Tensor& x, const Tensor& scale, const OptionalTensor& zero_point, ScalarType dtype) {
  Arguments args("quantize_int8", x);
  check_dtype(args.op(), "x", x.scalar_type(), {ScalarType::Float});
  const bool is_signed = is_signed_int8(args.op(), "dtype", dtype);
  const float inverse = 1.0f / *args.scalar<float>("scale", scale, ScalarType::Float);
  const int32_t shift = args.scalar<int32_t>("zero_point", zero_point, ScalarType::Int).value_or(0);
  Tensor out = empty_like(x, dtype);
  const Tensor source = in_layout(x, out);  // in the order of memory
  const float* from = static_cast<const float*>(source.const_data_ptr());
  uint8_t* to = static_cast<uint8_t*>(out.mutable_data_ptr());
  const Kernels& kernel = kernels();
  run_shares(x.numel(), static_cast<double>(x.numel()) / 4, [&](int64_t begin, int64_t end) {
    kernel.quantize(from + begin, end - begin, inverse, shift, is_signed, to + begin);
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> quantize_int8_dynamic(const Tensor& x, ScalarType dtype) {
  const char* op = "quantize_int8_dynamic";
  check_dtype(op, "x", x.scalar_type(), {ScalarType::Float});
  const bool is_signed = is_signed_int8(op, "dtype", dtype);
  STD_TORCH_CHECK(x.dim() > 0, op, ": x has no dimensions, accepted is [..., K]");
  const Tensor source = in_order(x);
  const int64_t k = x.size(x.dim() - 1);
  int64_t rows = 1;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) rows *= x.size(i);
  Tensor q = torch::stable::new_empty(x, x.sizes(), dtype);
  Tensor scale = torch::stable::new_empty(x, {&rows, 1}, ScalarType::Float);
  Tensor zero_point = torch::stable::new_empty(x, {&rows, 1}, ScalarType::Int);
  const float* from = static_cast<const float*>(source.const_data_ptr());
  uint8_t* to = static_cast<uint8_t*>(q.mutable_data_ptr());
  float* scales = static_cast<float*>(scale.mutable_data_ptr());
  int32_t* shifts = static_cast<int32_t*>(zero_point.mutable_data_ptr());
  const Kernels& kernel = kernels();
  run_shares(rows, static_cast<double>(rows) * static_cast<double>(k + 64) / 4, [&](int64_t begin, int64_t end) {
    kernel.quantize_rows(from + begin * k, end - begin, k, is_signed, to + begin * k, scales + begin, shifts + begin);
  });
  return {q, scale, zero_point};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torchaccel, CPU, m) {
  m.impl("quantize_int8", TORCH_BOX(&quantize_int8));
  m.impl("quantize_int8_dynamic", TORCH_BOX(&quantize_int8_dynamic));
}

}  // namespace torchaccel
