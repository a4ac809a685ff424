#include "data/kernels.h"

namespace torchaccel::data::scalar {
static constexpr const char* kName = "scalar";
#include "data/kernels.inl"

static void across(const uint8_t* row, const Weights& weights, int channels, uint8_t* out) {
  channels == 3 ? across_pixels<3>(row, weights, out) : across_pixels<1>(row, weights, out);
}
}  // namespace torchaccel::data::scalar

namespace torchaccel::data {

const Kernels& kernels() {
#if defined(__x86_64__)
  static const Kernels chosen = __builtin_cpu_supports("avx2") ? avx2::make() : scalar::make();
#else
  static const Kernels chosen = scalar::make();
#endif
  return chosen;
}

}  // namespace torchaccel::data
