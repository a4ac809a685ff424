// Products of a float16 or bfloat16 matrix by int8 weights.
#include "products.cuh"

namespace torchaccel::cuda {
namespace {

template <typename X>
bool run_of(const Call& call, const Matrix& x) {
  return x.pitch % 16 == 0 ? run<WeightOnlyProduct<X, 16>>(call, x) : run<WeightOnlyProduct<X, 2>>(call, x);
}

}  // namespace

bool run_weight_only(Type type, const Call& call, const Matrix& x) {
  return type == Type::kFloat16 ? run_of<__half>(call, x) : run_of<__nv_bfloat16>(call, x);
}

}  // namespace torchaccel::cuda
