// 16 lanes in two AVX2 registers; with TORCHACCEL_VNNI (AVX-VNNI) four products a lane in one instruction.

#define TORCHACCEL_INLINE static inline __attribute__((always_inline))

constexpr int kAccumulators = 4, kTileRows = 4, kTileVectors = 1;
constexpr int kVectorBytes = 32;                       // of one register
constexpr int kChainVectors1 = 2, kChainVectors4 = 1;  // of a chain's tile, for blocks of 1x4 and 4x4
constexpr int kRowsAtOnce = 1;                         // of sparse float rows, 6 accumulators of two registers each

struct I32 {
  __m256i lo, hi;
};
struct F32 {
  __m256 lo, hi;
};

TORCHACCEL_INLINE __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
TORCHACCEL_INLINE void store256(void* p, __m256i a) { _mm256_storeu_si256(static_cast<__m256i*>(p), a); }

TORCHACCEL_INLINE I32 i32_load(const int32_t* p) { return {load256(p), load256(p + 8)}; }
TORCHACCEL_INLINE void i32_store(int32_t* p, I32 a) {
  store256(p, a.lo);
  store256(p + 8, a.hi);
}
TORCHACCEL_INLINE I32 i32_splat(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
TORCHACCEL_INLINE I32 i32_add(I32 a, I32 b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
TORCHACCEL_INLINE I32 i32_sub(I32 a, I32 b) { return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)}; }
TORCHACCEL_INLINE I32 i32_mul(I32 a, I32 b) { return {_mm256_mullo_epi32(a.lo, b.lo), _mm256_mullo_epi32(a.hi, b.hi)}; }
TORCHACCEL_INLINE I32 i32_max(I32 a, I32 b) { return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)}; }
TORCHACCEL_INLINE I32 i32_shl8(I32 a) { return {_mm256_slli_epi32(a.lo, 8), _mm256_slli_epi32(a.hi, 8)}; }
// At the end of a loop that sums into a; else GCC copies it twice in every iteration.
TORCHACCEL_INLINE void i32_pin(I32& a) { asm("" : "+x"(a.lo), "+x"(a.hi)); }
// Two vectors as 16 bits, saturated; in an order that i32_bytes knows.
using Pair = I32;
TORCHACCEL_INLINE Pair pair(I32 a, I32 b) { return {_mm256_packs_epi32(a.lo, b.lo), _mm256_packs_epi32(a.hi, b.hi)}; }
TORCHACCEL_INLINE Pair pair_splat(int32_t x) {
  const __m256i words = _mm256_set1_epi16(static_cast<int16_t>(x));
  return {words, words};
}
TORCHACCEL_INLINE __m256i bytes256(__m256i a, __m256i b, __m256i low, __m256i high, __m256i add) {
  a = _mm256_adds_epi16(_mm256_min_epi16(high, _mm256_max_epi16(low, a)), add);
  b = _mm256_adds_epi16(_mm256_min_epi16(high, _mm256_max_epi16(low, b)), add);
  const __m256i order =
      _mm256_setr_epi32(0x0c080400, 0x0d090501, 0x0e0a0602, 0x0f0b0703, 0x0c080400, 0x0d090501, 0x0e0a0602, 0x0f0b0703);
  return _mm256_shuffle_epi8(_mm256_packus_epi16(a, b), order);
}
// Byte c of lane i is lane i of vector c of (a, b), clamped to [low, high], plus `add`, saturated to a byte.
TORCHACCEL_INLINE I32 i32_bytes(Pair a, Pair b, Pair low, Pair high, Pair add) {
  return {bytes256(a.lo, b.lo, low.lo, high.lo, add.lo), bytes256(a.hi, b.hi, low.hi, high.hi, add.hi)};
}
// Lane i is lane lanes[i] of a, or lane i of b where lanes[i] is -1.
TORCHACCEL_INLINE __m256i permute256(I32 a, __m256i lanes, __m256i b) {
  const __m256 lo = _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(a.lo, lanes));
  const __m256 hi = _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(a.hi, lanes));
  const __m256 is_hi = _mm256_castsi256_ps(_mm256_slli_epi32(lanes, 28));  // bit 3 as the sign
  return _mm256_castps_si256(
      _mm256_blendv_ps(_mm256_blendv_ps(lo, hi, is_hi), _mm256_castsi256_ps(b), _mm256_castsi256_ps(lanes)));
}
TORCHACCEL_INLINE I32 i32_permute(I32 a, const int32_t* lanes, I32 b) {
  return {permute256(a, load256(lanes), b.lo), permute256(a, load256(lanes + 8), b.hi)};
}
// The sign of lane i as bit i.
TORCHACCEL_INLINE int i32_signs(I32 a) {
  return _mm256_movemask_ps(_mm256_castsi256_ps(a.lo)) | _mm256_movemask_ps(_mm256_castsi256_ps(a.hi)) << 8;
}
TORCHACCEL_INLINE I32 i32_load_s8(const int8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8))};
}
TORCHACCEL_INLINE I32 i32_load_u8(const uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
}
// 16 values saturated to int16, in order.
TORCHACCEL_INLINE __m256i narrow16(I32 a) { return _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0xd8); }
TORCHACCEL_INLINE void i32_store_s8(int8_t* p, I32 a) {
  const __m256i w = narrow16(a);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packs_epi16(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1)));
}
TORCHACCEL_INLINE void i32_store_u8(uint8_t* p, I32 a) {
  const __m256i w = narrow16(a);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packus_epi16(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1)));
}
TORCHACCEL_INLINE I32 i32_round(F32 a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
TORCHACCEL_INLINE I32 i32_magnitude(F32 a) {
  const __m256i mask = _mm256_set1_epi32(0x7fffffff);
  return {_mm256_and_si256(_mm256_castps_si256(a.lo), mask), _mm256_and_si256(_mm256_castps_si256(a.hi), mask)};
}

TORCHACCEL_INLINE F32 f32_load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
TORCHACCEL_INLINE void f32_store(float* p, F32 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
TORCHACCEL_INLINE F32 f32_splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
TORCHACCEL_INLINE F32 f32_of(I32 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
TORCHACCEL_INLINE F32 f32_add(F32 a, F32 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
TORCHACCEL_INLINE F32 f32_sub(F32 a, F32 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
TORCHACCEL_INLINE F32 f32_mul(F32 a, F32 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
TORCHACCEL_INLINE F32 f32_fma(F32 a, F32 b, F32 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
TORCHACCEL_INLINE F32 f32_div(F32 a, F32 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
// The second operand where either is NaN.
TORCHACCEL_INLINE F32 f32_min(F32 a, F32 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
TORCHACCEL_INLINE F32 f32_max(F32 a, F32 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
TORCHACCEL_INLINE F32 f32_zero_if_nan(F32 a) {
  return {_mm256_and_ps(a.lo, _mm256_cmp_ps(a.lo, a.lo, _CMP_ORD_Q)),
          _mm256_and_ps(a.hi, _mm256_cmp_ps(a.hi, a.hi, _CMP_ORD_Q))};
}
TORCHACCEL_INLINE F32 f32_if_negative(F32 a, F32 b, F32 c) {
  const __m256 zero = _mm256_setzero_ps();
  return {_mm256_blendv_ps(c.lo, b.lo, _mm256_cmp_ps(a.lo, zero, _CMP_LT_OQ)),
          _mm256_blendv_ps(c.hi, b.hi, _mm256_cmp_ps(a.hi, zero, _CMP_LT_OQ))};
}
TORCHACCEL_INLINE F32 f32_exp2(I32 n) {
  const I32 biased = i32_add(n, i32_splat(127));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(biased.lo, 23)), _mm256_castsi256_ps(_mm256_slli_epi32(biased.hi, 23))};
}

// The first n floats, 1 to 16; the others are zero, and are not touched.
TORCHACCEL_INLINE __m256i first_n(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int32_t>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
TORCHACCEL_INLINE F32 f32_load_n(const float* p, int64_t n) {
  return {_mm256_maskload_ps(p, first_n(n)), _mm256_maskload_ps(p + 8, first_n(n - 8))};
}
TORCHACCEL_INLINE void f32_store_n(float* p, F32 a, int64_t n) {
  _mm256_maskstore_ps(p, first_n(n), a.lo);
  _mm256_maskstore_ps(p + 8, first_n(n - 8), a.hi);
}
// Bit i of 16 becomes bit 2 * i.
TORCHACCEL_INLINE uint32_t spread_bits(uint32_t bits) {
  bits = (bits | bits << 8) & 0x00ff00ff;
  bits = (bits | bits << 4) & 0x0f0f0f0f;
  bits = (bits | bits << 2) & 0x33333333;
  return (bits | bits << 1) & 0x55555555;
}
// Lane i is p[i] where bit i of `lanes` is set, else that of a, where it is zero; nothing else is read.
TORCHACCEL_INLINE __m256i lanes8(uint32_t bits) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int32_t>(bits)), bit), bit);
}
TORCHACCEL_INLINE __m256 load8(const float* p, uint32_t bits) { return _mm256_maskload_ps(p, lanes8(bits)); }
TORCHACCEL_INLINE F32 f32_merge(F32 a, const float* p, uint32_t lanes) {
  return {_mm256_or_ps(a.lo, load8(p, lanes)), _mm256_or_ps(a.hi, load8(p + 8, lanes >> 8))};
}
// Lane i to p[i] where bit i of `lanes` is set; nothing else is touched.
TORCHACCEL_INLINE void f32_store_lanes(float* p, F32 a, uint32_t lanes) {
  _mm256_maskstore_ps(p, lanes8(lanes), a.lo);
  _mm256_maskstore_ps(p + 8, lanes8(lanes >> 8), a.hi);
}
// To 64 aligned bytes past the caches; f32_streamed before other threads read them.
TORCHACCEL_INLINE void f32_stream(float* p, F32 a) {
  _mm256_stream_ps(p, a.lo);
  _mm256_stream_ps(p + 8, a.hi);
}
TORCHACCEL_INLINE void f32_streamed() { _mm_sfence(); }
// Lane i is p[2 * i] where bit i of `lanes` is set, else that of a, where it is zero; nothing else is read.
TORCHACCEL_INLINE __m256 even8(const float* p, uint32_t spread) {
  const __m256 mixed = _mm256_shuffle_ps(load8(p, spread), load8(p + 8, spread >> 8), 0x88);
  return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(mixed), 0xd8));
}
TORCHACCEL_INLINE F32 f32_merge_even(F32 a, const float* p, uint32_t lanes) {
  const uint32_t spread = spread_bits(lanes);
  return {_mm256_or_ps(a.lo, even8(p, spread)), _mm256_or_ps(a.hi, even8(p + 16, spread >> 16))};
}

// Four weights, and one of them in every lane.
using Quad = const float*;
TORCHACCEL_INLINE Quad quad_load(const float* p) { return p; }
TORCHACCEL_INLINE F32 quad_splat(Quad q, int i) { return f32_splat(q[i]); }

#ifdef TORCHACCEL_VNNI

struct X {
  __m256i lo, hi;
};
using W = X;
TORCHACCEL_INLINE X x_load(const uint8_t* p) { return {load256(p), load256(p + 32)}; }
TORCHACCEL_INLINE X x_splat(const uint8_t* p) {
  int32_t word;
  memcpy(&word, p, 4);
  return {_mm256_set1_epi32(word), _mm256_set1_epi32(word)};
}
TORCHACCEL_INLINE W w_load(const int8_t* p) { return {load256(p), load256(p + 32)}; }
TORCHACCEL_INLINE W w_splat(int32_t word) { return {_mm256_set1_epi32(word), _mm256_set1_epi32(word)}; }
TORCHACCEL_INLINE I32 dot4(I32 acc, X x, W w) {
  return {_mm256_dpbusd_avx_epi32(acc.lo, x.lo, w.lo), _mm256_dpbusd_avx_epi32(acc.hi, x.hi, w.hi)};
}

#else

// Without VNNI the bytes are widened to 16 bits, even and odd ones apart: vpmaddubsw would saturate.
struct X {
  __m256i even_lo, odd_lo, even_hi, odd_hi;
};
using W = X;
TORCHACCEL_INLINE X x_split(__m256i lo, __m256i hi) {
  const __m256i mask = _mm256_set1_epi16(0xff);
  return {_mm256_and_si256(lo, mask), _mm256_srli_epi16(lo, 8), _mm256_and_si256(hi, mask), _mm256_srli_epi16(hi, 8)};
}
TORCHACCEL_INLINE W w_split(__m256i lo, __m256i hi) {
  return {_mm256_srai_epi16(_mm256_slli_epi16(lo, 8), 8), _mm256_srai_epi16(lo, 8),
          _mm256_srai_epi16(_mm256_slli_epi16(hi, 8), 8), _mm256_srai_epi16(hi, 8)};
}
TORCHACCEL_INLINE X x_load(const uint8_t* p) { return x_split(load256(p), load256(p + 32)); }
TORCHACCEL_INLINE X x_splat(const uint8_t* p) {
  int32_t word;
  memcpy(&word, p, 4);
  const __m256i words = _mm256_set1_epi32(word);
  return x_split(words, words);
}
TORCHACCEL_INLINE W w_load(const int8_t* p) { return w_split(load256(p), load256(p + 32)); }
TORCHACCEL_INLINE W w_splat(int32_t word) {
  const __m256i words = _mm256_set1_epi32(word);
  return w_split(words, words);
}
TORCHACCEL_INLINE I32 dot4(I32 acc, X x, W w) {
  acc = i32_add(acc, {_mm256_madd_epi16(x.even_lo, w.even_lo), _mm256_madd_epi16(x.even_hi, w.even_hi)});
  return i32_add(acc, {_mm256_madd_epi16(x.odd_lo, w.odd_lo), _mm256_madd_epi16(x.odd_hi, w.odd_hi)});
}

#endif

// 8 rows of 8 dwords, of which the first `dwords` are read and written.
TORCHACCEL_INLINE void transpose8(const uint8_t* const* rows, int64_t offset, int dwords, __m256i flips, uint8_t* dst,
                                  int64_t stride) {
  const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(dwords), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  __m256i a[8], b[8];
  for (int i = 0; i < 8; ++i) a[i] = _mm256_maskload_epi32(reinterpret_cast<const int*>(rows[i] + offset), mask);
  for (int i = 0; i < 8; i += 2) {
    b[i] = _mm256_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_epi32(a[i], a[i + 1]);
  }
  // a[4 * q + j]: dwords j and j + 4 (one per 128 bits) of rows 4 * q .. 4 * q + 3.
  for (int i = 0; i < 8; i += 4) {
    a[i] = _mm256_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm256_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm256_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm256_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
  for (int j = 0; j < 4; ++j) {
    b[j] = _mm256_permute2x128_si256(a[j], a[j + 4], 0x20);
    b[j + 4] = _mm256_permute2x128_si256(a[j], a[j + 4], 0x31);
  }
  for (int d = 0; d < 8; ++d) {
    if (d < dwords) store256(dst + d * stride, _mm256_xor_si256(b[d], flips));
  }
}

// dst[d * stride + 4 * r ...] = dword d of rows[r], XOR flip; 16 rows, 1 to 16 dwords.
TORCHACCEL_INLINE void transpose16(const uint8_t* const* rows, int dwords, uint32_t flip, uint8_t* dst,
                                   int64_t stride) {
  const __m256i flips = _mm256_set1_epi32(static_cast<int32_t>(flip));
  for (int d = 0; d < dwords; d += 8) {
    const int count = dwords - d < 8 ? dwords - d : 8;
    transpose8(rows, 4 * d, count, flips, dst + d * stride, stride);
    transpose8(rows + 8, 4 * d, count, flips, dst + d * stride + 32, stride);
  }
}

#include "scatter16.h"
