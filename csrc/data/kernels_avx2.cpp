#include "data/kernels.h"

#if defined(__x86_64__)
#pragma GCC target("avx2")
#include <immintrin.h>

namespace torchaccel::data::avx2 {
static constexpr const char* kName = "avx2";
#include "data/kernels.inl"

// Four inputs at a time. Multiply-and-add works on 16 bits, so the 22-bit weights come in halves; the lower lane takes
// two pixels, the upper lane the next two, as pairs of one channel: r0 r1 g0 g1 b0 b1 0 0.
static void across(const uint8_t* row, const Weights& weights, int channels, uint8_t* out) {
  if (channels == 1) return across_pixels<1>(row, weights, out);
  const __m256i pairs = _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,  //
                                         6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
  const __m256i upper = _mm256_setr_epi8(0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3,  //
                                         4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7);
  const __m256i lower = _mm256_add_epi8(upper, _mm256_set1_epi8(8));
  const __m128i half = _mm_set1_epi32(kHalf);
  const int16_t* halves = weights.halves;
  const int blocks = weights.blocks;
  for (int x = 0; x < weights.size; ++x, out += 3) {
    const uint8_t* p = row + weights.start[x] * 3;
    __m256i high = _mm256_setzero_si256(), low = _mm256_setzero_si256();
    for (int block = 0; block < blocks; ++block, p += 12, halves += 8) {
      const __m256i bytes = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
      const __m256i weight = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves)));
      const __m256i pixels = _mm256_shuffle_epi8(bytes, pairs);
      high = _mm256_add_epi32(high, _mm256_madd_epi16(pixels, _mm256_shuffle_epi8(weight, upper)));
      low = _mm256_add_epi32(low, _mm256_madd_epi16(pixels, _mm256_shuffle_epi8(weight, lower)));
    }
    const __m256i both = _mm256_add_epi32(_mm256_slli_epi32(high, kHalfBits), low);
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
    sum = _mm_srai_epi32(_mm_add_epi32(sum, half), kWeightBits);
    sum = _mm_packus_epi32(sum, sum);
    const int pixel = _mm_cvtsi128_si32(_mm_packus_epi16(sum, sum));
    __builtin_memcpy(out, &pixel, 4);  // the next pixel overwrites what is too much
  }
}
}  // namespace torchaccel::data::avx2
#endif
