// quantize_int8 and quantize_int8_dynamic for CUDA: checks, allocation and launch on quantize_int8.cuh.
#include <tuple>

#include "op.h"
#include "quantize_int8.cuh"

namespace torchaccel::cuda {
namespace {

// Calls run(pointer to const T, pointer to Q) for the types of x and q.
template <typename Run>
void dispatch(const char* op, const Tensor& x, const Tensor& q, Run run) {
  const auto with_output = [&](auto* from) {
    if (q.scalar_type() == ScalarType::Char) return run(from, static_cast<int8_t*>(q.data_ptr()));
    STD_TORCH_CHECK(q.scalar_type() == ScalarType::Byte, op, ": dtype is neither torch.int8 nor torch.uint8");
    run(from, static_cast<uint8_t*>(q.data_ptr()));
  };
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return with_output(static_cast<const float*>(x.data_ptr()));
    case ScalarType::Half:
      return with_output(static_cast<const __half*>(x.data_ptr()));
    case ScalarType::BFloat16:
      return with_output(static_cast<const __nv_bfloat16*>(x.data_ptr()));
    default:
      STD_TORCH_CHECK(false, op, ": x is neither float32, float16 nor bfloat16");
  }
}

void check_parameter(const char* op, const char* name, const Tensor& value, ScalarType dtype, const Tensor& x) {
  STD_TORCH_CHECK(value.numel() == 1 && value.scalar_type() == dtype &&
                      value.get_device_index() == x.get_device_index() && value.is_cuda(),
                  op, ": ", name, " must be one ", dtype == ScalarType::Float ? "float32" : "int32",
                  " on the device of x, given are ", value.numel(), " elements");
}

bool same_layout(const Tensor& a, const Tensor& b) {
  for (int64_t i = 0; i < a.dim(); ++i) {
    if (a.size(i) != 1 && a.stride(i) != b.stride(i)) return false;
  }
  return true;
}

Tensor quantize_int8(const Tensor& given, const Tensor& scale, std::optional<Tensor> zero_point, ScalarType dtype) {
  constexpr const char* kOp = "quantize_int8";
  check_parameter(kOp, "scale", scale, ScalarType::Float, given);
  if (zero_point) check_parameter(kOp, "zero_point", *zero_point, ScalarType::Int, given);
  const torch::stable::accelerator::DeviceGuard guard(given.get_device_index());
  Tensor q = empty_like(given, dtype);
  if (given.numel() == 0) return q;
  Tensor x = given;
  if (!same_layout(x, q)) {  // gaps or overlaps: q is dense all the same, so a dense copy walks in its order
    x = empty_like(given, given.scalar_type());
    torch::stable::copy_(x, given);
  }
  const auto* shift = zero_point ? static_cast<const int32_t*>(zero_point->data_ptr()) : nullptr;
  dispatch(kOp, x, q, [&](auto* from, auto* to) {
    quantize_tensor(from, to, static_cast<const float*>(scale.data_ptr()), shift, x.numel(), current_stream(x));
  });
  check_launch(kOp);
  return q;
}

std::tuple<Tensor, Tensor, Tensor> quantize_int8_dynamic(const Tensor& given, ScalarType dtype) {
  constexpr const char* kOp = "quantize_int8_dynamic";
  STD_TORCH_CHECK(given.dim() > 0, kOp, ": x has no dimensions, accepted is [..., K]");
  const torch::stable::accelerator::DeviceGuard guard(given.get_device_index());
  const Tensor x = torch::stable::contiguous(given);
  const int64_t k = x.size(x.dim() - 1);
  int64_t rows = 1;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) rows *= x.size(i);
  Tensor q = torch::stable::new_empty(x, x.sizes(), dtype);
  Tensor scale = torch::stable::new_empty(x, {rows}, ScalarType::Float);
  Tensor zero_point = torch::stable::new_empty(x, {rows}, ScalarType::Int);
  if (rows != 0) {
    dispatch(kOp, x, q, [&](auto* from, auto* to) {
      quantize_rows(from, to, static_cast<float*>(scale.data_ptr()), static_cast<int32_t*>(zero_point.data_ptr()), rows,
                    k, current_stream(x));
    });
    check_launch(kOp);
  }
  return {q, scale, zero_point};
}

}  // namespace
}  // namespace torchaccel::cuda

STABLE_TORCH_LIBRARY_IMPL(torchaccel, CUDA, m) {
  m.impl("quantize_int8", TORCH_BOX(&torchaccel::cuda::quantize_int8));
  m.impl("quantize_int8_dynamic", TORCH_BOX(&torchaccel::cuda::quantize_int8_dynamic));
}
