// int8_linear_weight_only: checks and equal shares of the output channels for the threads; see weight_only.inl.
#include <torch/csrc/stable/library.h>

#include "arguments.h"
#include "isa.h"
#include "parallel.h"

namespace torchaccel {
namespace {

Tensor int8_linear_weight_only(const Tensor& x, const Tensor& b, const Tensor& scale_b, const OptionalTensor& bias,
                               const std::string& activation, const OptionalTensor& packed) {
  Arguments args("int8_linear_weight_only", x);
  check_dtype(args.op(), "x", x.scalar_type(), {ScalarType::Float});
  const LinearSizes s = linear_sizes(args.op(), "x", x, b);
  WeightOnly p = {};
  p.rows = s.m, p.k = s.k, p.channels = s.n;
  p.scale_b = args.vector<float>("scale_b", scale_b, ScalarType::Float, s.n);
  p.bias = args.vector<float>("bias", bias, ScalarType::Float, s.n);
  p.activation = activation_of(args.op(), activation);
  STD_TORCH_CHECK(packed.has_value(), args.op(), ": packed is missing, accepted is what pack_weight_only returned");
  check_dtype(args.op(), "packed", packed->scalar_type(), {ScalarType::Char});
  check_device(args.op(), "packed", *packed, x);
  STD_TORCH_CHECK(packed->numel() == (s.n + kLanes - 1) / kLanes * kLanes * s.k && packed->is_contiguous(), args.op(),
                  ": packed has shape ", shape_of(*packed), ", accepted is what pack_weight_only returned for this b");
  p.packed = static_cast<const int8_t*>(packed->const_data_ptr());
  const Tensor rows = in_order(x);
  p.x = static_cast<const float*>(rows.const_data_ptr());
  Tensor out = torch::stable::new_empty(x, {s.out.data(), s.out.size()}, ScalarType::Float);
  p.out = static_cast<float*>(out.mutable_data_ptr());
  const Kernels& kernel = kernels();
  // 32 products a clock, or 16 weights a clock where there are few rows.
  const double cycles = static_cast<double>(s.n) * static_cast<double>(s.k) * (static_cast<double>(s.m) + 2) / 32;
  if (s.m > 0) run_shares(p.units(), cycles, [&](int64_t begin, int64_t end) { kernel.weight_only(p, begin, end); });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torchaccel, CPU, m) {
  m.impl("int8_linear_weight_only", TORCH_BOX(&int8_linear_weight_only));
}

}  // namespace torchaccel
