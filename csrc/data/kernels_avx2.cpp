#include "data/kernels.h"

#if defined(__x86_64__)
#pragma GCC target("avx2")
#include <immintrin.h>

namespace torchaccel::data::avx2 {
static constexpr const char* kName = "avx2";
#include "data/kernels.inl"

// Four inputs at a time. Multiply-and-add works on 16 bits, so the 22-bit weights come in halves; the lower lane takes
// two pixels, the upper lane the next two, as pairs of one channel: r0 r1 g0 g1 b0 b1 0 0.
struct Shuffles {
  __m256i pairs, upper, lower;
};

static inline Shuffles make_shuffles() {
  const __m256i pairs = _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,  //
                                         6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
  const __m256i upper = _mm256_setr_epi8(0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3,  //
                                         4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7);
  return {pairs, upper, _mm256_add_epi8(upper, _mm256_set1_epi8(8))};
}

static inline __m256i both_lanes(const void* p) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(p)));
}

// The sums of one output pixel, of which both lanes hold a part.
static inline __m256i sums(const uint8_t* p, const int16_t* halves, int blocks, const Shuffles& shuffles) {
  __m256i pixels = _mm256_shuffle_epi8(both_lanes(p), shuffles.pairs), weight = both_lanes(halves);
  __m256i high = _mm256_madd_epi16(pixels, _mm256_shuffle_epi8(weight, shuffles.upper));
  __m256i low = _mm256_madd_epi16(pixels, _mm256_shuffle_epi8(weight, shuffles.lower));
  for (int block = 1; block < blocks; ++block) {
    pixels = _mm256_shuffle_epi8(both_lanes(p + 12 * block), shuffles.pairs);
    weight = both_lanes(halves + 8 * block);
    high = _mm256_add_epi32(high, _mm256_madd_epi16(pixels, _mm256_shuffle_epi8(weight, shuffles.upper)));
    low = _mm256_add_epi32(low, _mm256_madd_epi16(pixels, _mm256_shuffle_epi8(weight, shuffles.lower)));
  }
  return _mm256_add_epi32(_mm256_slli_epi32(high, kHalfBits), low);
}

// Two pixels, one a lane, rounded.
static inline __m256i rounded(__m256i a, __m256i b) {
  const __m256i sum = _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
  return _mm256_srai_epi32(_mm256_add_epi32(sum, _mm256_set1_epi32(kHalf)), kWeightBits);
}

template <int kBlocks>  // 0: as many as the weights have
static void across_rgb(const uint8_t* row, const Weights& weights, uint8_t* out) {
  const Shuffles shuffles = make_shuffles();
  const int blocks = kBlocks > 0 ? kBlocks : weights.blocks, step = 8 * blocks;
  const __m256i dense = _mm256_setr_epi8(0, 1, 2, 4, 5, 6, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                         0, 1, 2, 4, 5, 6, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  const int16_t* halves = weights.halves;
  const int* start = weights.start;
  int x = 0;
  for (; x + 4 <= weights.size; x += 4, halves += 4 * step, out += 12) {
    const __m256i a = sums(row + start[x] * 3, halves, blocks, shuffles);
    const __m256i b = sums(row + start[x + 1] * 3, halves + step, blocks, shuffles);
    const __m256i c = sums(row + start[x + 2] * 3, halves + 2 * step, blocks, shuffles);
    const __m256i d = sums(row + start[x + 3] * 3, halves + 3 * step, blocks, shuffles);
    // Lanes: a b, then c d.
    const __m256i words = _mm256_packus_epi32(rounded(a, c), rounded(b, d));
    const __m256i bytes = _mm256_shuffle_epi8(_mm256_packus_epi16(words, words), dense);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm256_castsi256_si128(bytes));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out + 6), _mm256_extracti128_si256(bytes, 1));
  }
  for (; x < weights.size; ++x, halves += step, out += 3) {
    const __m256i a = sums(row + start[x] * 3, halves, blocks, shuffles);
    const __m256i words = _mm256_packus_epi32(rounded(a, a), rounded(a, a));
    const int pixel = _mm_cvtsi128_si32(_mm256_castsi256_si128(_mm256_packus_epi16(words, words)));
    __builtin_memcpy(out, &pixel, 4);  // the next pixel overwrites what is too much
  }
}

static void across(const uint8_t* row, const Weights& weights, int channels, uint8_t* out) {
  if (channels == 1) return across_pixels<1>(row, weights, out);
  weights.blocks == 1 ? across_rgb<1>(row, weights, out) : across_rgb<0>(row, weights, out);
}

static inline __m256i wide(const uint8_t* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}

static void down(const uint8_t* const* rows, const int32_t* weight, int count, int bytes, uint8_t* out) {
  int i = 0;
  for (; i + 32 <= bytes; i += 32) {
    __m256i a = _mm256_set1_epi32(kHalf), b = a, c = a, d = a;
    for (int k = 0; k < count; ++k) {
      const uint8_t* row = rows[k] + i;
      const __m256i w = _mm256_set1_epi32(weight[k]);
      a = _mm256_add_epi32(a, _mm256_mullo_epi32(wide(row), w));
      b = _mm256_add_epi32(b, _mm256_mullo_epi32(wide(row + 8), w));
      c = _mm256_add_epi32(c, _mm256_mullo_epi32(wide(row + 16), w));
      d = _mm256_add_epi32(d, _mm256_mullo_epi32(wide(row + 24), w));
    }
    a = _mm256_packus_epi32(_mm256_srai_epi32(a, kWeightBits), _mm256_srai_epi32(b, kWeightBits));
    c = _mm256_packus_epi32(_mm256_srai_epi32(c, kWeightBits), _mm256_srai_epi32(d, kWeightBits));
    // Packing works within lanes: words of four are in the order a b c d, then their second halves.
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    a = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(a, c), order);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), a);
  }
  down_from(i, rows, weight, count, bytes, out);
}

// Five pixels at a time. The row is read forwards, as memory is fetched ahead; each store's first byte is overwritten
// by the next five pixels.
static void reverse(const uint8_t* row, int size, int channels, uint8_t* out) {
  if (channels == 3) {
    const __m128i order = _mm_setr_epi8(-1, 12, 13, 14, 9, 10, 11, 6, 7, 8, 3, 4, 5, 0, 1, 2);
    for (; size > 5; size -= 5, row += 15) {
      const __m128i pixels = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 3 * size - 16), _mm_shuffle_epi8(pixels, order));
    }
  }
  reverse_pixels(row, size, channels, out);
}
}  // namespace torchaccel::data::avx2
#endif
