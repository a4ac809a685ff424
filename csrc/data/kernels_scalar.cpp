#include "data/kernels.h"

namespace torchaccel::data::scalar {
static constexpr const char* kName = "scalar";
#include "data/kernels.inl"

static void across(const uint8_t* row, const Weights& weights, int channels, uint8_t* out) {
  channels == 3 ? across_pixels<3>(row, weights, out) : across_pixels<1>(row, weights, out);
}

static void down(const uint8_t* const* rows, const int32_t* weight, int count, int bytes, uint8_t* out) {
  constexpr int kBlock = 32;
  int i = 0;
  for (; i + kBlock <= bytes; i += kBlock) {
    int32_t sum[kBlock];
    for (int j = 0; j < kBlock; ++j) sum[j] = kHalf;
    for (int k = 0; k < count; ++k) {
      for (int j = 0; j < kBlock; ++j) sum[j] += rows[k][i + j] * weight[k];
    }
    for (int j = 0; j < kBlock; ++j) {
      sum[j] >>= kWeightBits;
      out[i + j] = static_cast<uint8_t>(sum[j] > 255 ? 255 : sum[j]);
    }
  }
  down_from(i, rows, weight, count, bytes, out);
}

static void reverse(const uint8_t* row, int size, int channels, uint8_t* out) {
  reverse_pixels(row, size, channels, out);
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
