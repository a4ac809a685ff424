// Convolutions of float16 and bfloat16 with pruned weights: 2:4, skipped tiles, or both.
#include "products.cuh"

namespace torchaccel::cuda {

namespace {

template <typename X>
bool run_half_of(bool two_four, const Call& call, const Image& x) {
  return two_four ? run<SkipSparse24Product<X>>(call, x) : run<SkipDenseProduct<X>>(call, x);
}

}  // namespace

bool run_half(Type type, bool two_four, const Call& call, const Image& x) {
  return type == Type::kFloat16 ? run_half_of<__half>(two_four, call, x)
                                : run_half_of<__nv_bfloat16>(two_four, call, x);
}

}  // namespace torchaccel::cuda
