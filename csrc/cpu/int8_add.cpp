// int8_add: checks, allocation, and equal shares of the elements for the threads; see add.inl.
#include <torch/csrc/stable/library.h>

#include "arguments.h"
#include "isa.h"
#include "parallel.h"

namespace torchaccel {
namespace {

Tensor int8_add(const Tensor& a, const Tensor& b, const Tensor& scale_a, const OptionalTensor& zero_point_a,
                const Tensor& scale_b, const OptionalTensor& zero_point_b, const std::string& activation,
                ScalarType out_dtype, const OptionalTensor& scale_out, const OptionalTensor& zero_point_out) {
  Arguments args("int8_add", a);
  Addition d = {};
  d.type_a = is_signed_int8(args.op(), "a", a.scalar_type()) ? Type::kInt8 : Type::kUint8;
  d.type_b = is_signed_int8(args.op(), "b", b.scalar_type()) ? Type::kInt8 : Type::kUint8;
  check_device(args.op(), "b", b, a);
  STD_TORCH_CHECK(shape_of(a) == shape_of(b), args.op(), ": b has shape ", shape_of(b), ", accepted is ", shape_of(a));
  d.scale_a = *args.vector<float>("scale_a", scale_a, ScalarType::Float, 1);
  d.scale_b = *args.vector<float>("scale_b", scale_b, ScalarType::Float, 1);
  const int32_t* shift_a = args.vector<int32_t>("zero_point_a", zero_point_a, ScalarType::Int, 1);
  const int32_t* shift_b = args.vector<int32_t>("zero_point_b", zero_point_b, ScalarType::Int, 1);
  d.zero_point_a = shift_a == nullptr ? 0 : *shift_a;
  d.zero_point_b = shift_b == nullptr ? 0 : *shift_b;
  d.activation = activation_of(args.op(), activation);
  d.out = make_output(args, out_dtype, scale_out, zero_point_out);
  Tensor out = empty_like(a, out_dtype);
  const Tensor first = in_layout(a, out), second = in_layout(b, out);
  d.a = first.const_data_ptr();
  d.b = second.const_data_ptr();
  d.out.data = out.mutable_data_ptr();
  const Kernels& kernel = kernels();
  run_shares(a.numel(), static_cast<double>(a.numel()) / 3,
             [&](int64_t begin, int64_t end) { kernel.add(d, begin, end); });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torchaccel, CPU, m) { m.impl("int8_add", TORCH_BOX(&int8_add)); }

}  // namespace torchaccel
