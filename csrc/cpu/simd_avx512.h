// 16 lanes in one AVX-512 register (F, BW, VL, DQ); with TORCHACCEL_VNNI four products a lane in one instruction.

#define TORCHACCEL_INLINE static inline __attribute__((always_inline))

constexpr int kAccumulators = 24, kTileRows = 8, kTileVectors = 2;
constexpr int kVectorBytes = 64;                       // of one register
constexpr int kChainVectors1 = 8, kChainVectors4 = 5;  // of a chain's tile, for blocks of 1x4 and 4x4
constexpr int kRowsAtOnce = 4;                         // of sparse float rows, 6 accumulators each

using I32 = __m512i;
using F32 = __m512;

TORCHACCEL_INLINE I32 i32_load(const int32_t* p) { return _mm512_loadu_si512(p); }
TORCHACCEL_INLINE void i32_store(int32_t* p, I32 a) { _mm512_storeu_si512(p, a); }
TORCHACCEL_INLINE I32 i32_splat(int32_t x) { return _mm512_set1_epi32(x); }
TORCHACCEL_INLINE I32 i32_add(I32 a, I32 b) { return _mm512_add_epi32(a, b); }
TORCHACCEL_INLINE I32 i32_sub(I32 a, I32 b) { return _mm512_sub_epi32(a, b); }
TORCHACCEL_INLINE I32 i32_mul(I32 a, I32 b) { return _mm512_mullo_epi32(a, b); }
TORCHACCEL_INLINE I32 i32_max(I32 a, I32 b) { return _mm512_max_epi32(a, b); }
TORCHACCEL_INLINE I32 i32_shl8(I32 a) { return _mm512_slli_epi32(a, 8); }
// At the end of a loop that sums into a; else GCC copies it twice in every iteration.
TORCHACCEL_INLINE void i32_pin(I32& a) { asm("" : "+v"(a)); }
// Two vectors as 16 bits, saturated; in an order that i32_bytes knows.
using Pair = __m512i;
TORCHACCEL_INLINE Pair pair(I32 a, I32 b) { return _mm512_packs_epi32(a, b); }
TORCHACCEL_INLINE Pair pair_splat(int32_t x) { return _mm512_set1_epi16(static_cast<int16_t>(x)); }
// Byte c of lane i is lane i of vector c of (a, b), clamped to [low, high], plus `add`, saturated to a byte.
TORCHACCEL_INLINE I32 i32_bytes(Pair a, Pair b, Pair low, Pair high, Pair add) {
  a = _mm512_adds_epi16(_mm512_min_epi16(high, _mm512_max_epi16(low, a)), add);
  b = _mm512_adds_epi16(_mm512_min_epi16(high, _mm512_max_epi16(low, b)), add);
  const __m512i order = _mm512_set4_epi32(0x0f0b0703, 0x0e0a0602, 0x0d090501, 0x0c080400);
  return _mm512_shuffle_epi8(_mm512_packus_epi16(a, b), order);
}
// Lane i is lane lanes[i] of a, or lane i of b where lanes[i] is -1.
TORCHACCEL_INLINE I32 i32_permute(I32 a, const int32_t* lanes, I32 b) {
  const I32 from = i32_load(lanes);
  return _mm512_mask_blend_epi32(_mm512_movepi32_mask(from), _mm512_permutexvar_epi32(from, a), b);
}
// The sign of lane i as bit i.
TORCHACCEL_INLINE int i32_signs(I32 a) { return _mm512_movepi32_mask(a); }
TORCHACCEL_INLINE I32 i32_load_s8(const int8_t* p) {
  return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
TORCHACCEL_INLINE I32 i32_load_u8(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
TORCHACCEL_INLINE void i32_store_s8(int8_t* p, I32 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(a));
}
TORCHACCEL_INLINE void i32_store_u8(uint8_t* p, I32 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtusepi32_epi8(_mm512_max_epi32(a, _mm512_setzero_si512())));
}
TORCHACCEL_INLINE I32 i32_round(F32 a) { return _mm512_cvtps_epi32(a); }
TORCHACCEL_INLINE I32 i32_magnitude(F32 a) {
  return _mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(0x7fffffff));
}

TORCHACCEL_INLINE F32 f32_load(const float* p) { return _mm512_loadu_ps(p); }
TORCHACCEL_INLINE void f32_store(float* p, F32 a) { _mm512_storeu_ps(p, a); }
TORCHACCEL_INLINE F32 f32_splat(float x) { return _mm512_set1_ps(x); }
TORCHACCEL_INLINE F32 f32_of(I32 a) { return _mm512_cvtepi32_ps(a); }
TORCHACCEL_INLINE F32 f32_add(F32 a, F32 b) { return _mm512_add_ps(a, b); }
TORCHACCEL_INLINE F32 f32_sub(F32 a, F32 b) { return _mm512_sub_ps(a, b); }
TORCHACCEL_INLINE F32 f32_mul(F32 a, F32 b) { return _mm512_mul_ps(a, b); }
TORCHACCEL_INLINE F32 f32_fma(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }
TORCHACCEL_INLINE F32 f32_div(F32 a, F32 b) { return _mm512_div_ps(a, b); }
// The second operand where either is NaN.
TORCHACCEL_INLINE F32 f32_min(F32 a, F32 b) { return _mm512_min_ps(a, b); }
TORCHACCEL_INLINE F32 f32_max(F32 a, F32 b) { return _mm512_max_ps(a, b); }
TORCHACCEL_INLINE F32 f32_zero_if_nan(F32 a) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, a, _CMP_ORD_Q), a); }
TORCHACCEL_INLINE F32 f32_if_negative(F32 a, F32 b, F32 c) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, _mm512_setzero_ps(), _CMP_LT_OQ), c, b);
}
TORCHACCEL_INLINE F32 f32_exp2(I32 n) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23));
}

// The first n floats, 0 to 16; the others are zero, and are not touched.
TORCHACCEL_INLINE __mmask16 first_n(int64_t n) { return static_cast<__mmask16>(0xffff >> (16 - n)); }
TORCHACCEL_INLINE F32 f32_load_n(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(first_n(n), p); }
TORCHACCEL_INLINE void f32_store_n(float* p, F32 a, int64_t n) { _mm512_mask_storeu_ps(p, first_n(n), a); }
// Lane i to p[i] where bit i of `lanes` is set; nothing else is touched.
TORCHACCEL_INLINE void f32_store_lanes(float* p, F32 a, uint32_t lanes) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>(lanes), a);
}
// To 64 aligned bytes past the caches; f32_streamed before other threads read them.
TORCHACCEL_INLINE void f32_stream(float* p, F32 a) { _mm512_stream_ps(p, a); }
TORCHACCEL_INLINE void f32_streamed() { _mm_sfence(); }
// Bit i of 16 becomes bit 2 * i.
TORCHACCEL_INLINE uint32_t spread_bits(uint32_t bits) {
  bits = (bits | bits << 8) & 0x00ff00ff;
  bits = (bits | bits << 4) & 0x0f0f0f0f;
  bits = (bits | bits << 2) & 0x33333333;
  return (bits | bits << 1) & 0x55555555;
}
// Lane i is p[i] where bit i of `lanes` is set, else that of a; nothing else is read.
TORCHACCEL_INLINE F32 f32_merge(F32 a, const float* p, uint32_t lanes) {
  return _mm512_mask_loadu_ps(a, static_cast<__mmask16>(lanes), p);
}
// The same of p[2 * i].
TORCHACCEL_INLINE F32 f32_merge_even(F32 a, const float* p, uint32_t lanes) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const uint32_t spread = spread_bits(lanes);
  const F32 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(spread), p);
  const F32 high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(spread >> 16), p + 16);
  return _mm512_mask_blend_ps(static_cast<__mmask16>(lanes), a, _mm512_permutex2var_ps(low, even, high));
}

// Four weights by one load, and one of them (a constant, once loops are unrolled) in every lane.
using Quad = __m512;
TORCHACCEL_INLINE Quad quad_load(const float* p) { return _mm512_broadcast_f32x4(_mm_loadu_ps(p)); }
TORCHACCEL_INLINE F32 quad_splat(Quad q, int i) {
  return i == 0   ? _mm512_permute_ps(q, 0x00)
         : i == 1 ? _mm512_permute_ps(q, 0x55)
         : i == 2 ? _mm512_permute_ps(q, 0xaa)
                  : _mm512_permute_ps(q, 0xff);
}

#ifdef TORCHACCEL_VNNI

using X = __m512i;
using W = __m512i;
TORCHACCEL_INLINE X x_load(const uint8_t* p) { return _mm512_loadu_si512(p); }
TORCHACCEL_INLINE X x_splat(const uint8_t* p) {
  int32_t word;
  memcpy(&word, p, 4);
  return _mm512_set1_epi32(word);
}
TORCHACCEL_INLINE W w_load(const int8_t* p) { return _mm512_loadu_si512(p); }
TORCHACCEL_INLINE W w_splat(int32_t word) { return _mm512_set1_epi32(word); }
TORCHACCEL_INLINE I32 dot4(I32 acc, X x, W w) { return _mm512_dpbusd_epi32(acc, x, w); }

// Quads: four neighbouring taps of one channel in the four bytes of a dword.
#define TORCHACCEL_QUADS
// Byte j of dword i of the k-th becomes byte i of dword k of the j-th, in each 128 bits.
TORCHACCEL_INLINE void x_transpose4(X (&a)[4]) {
  const __m512i p = _mm512_unpacklo_epi8(a[0], a[1]), q = _mm512_unpackhi_epi8(a[0], a[1]);
  const __m512i r = _mm512_unpacklo_epi8(a[2], a[3]), s = _mm512_unpackhi_epi8(a[2], a[3]);
  a[0] = _mm512_unpacklo_epi16(p, r);
  a[1] = _mm512_unpackhi_epi16(p, r);
  a[2] = _mm512_unpacklo_epi16(q, s);
  a[3] = _mm512_unpackhi_epi16(q, s);
}
// 128 bits in all four places.
TORCHACCEL_INLINE W w_quad(const int8_t* p) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
TORCHACCEL_INLINE I32 i32_quad(const int32_t* p) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
// The 16 bits of (a, b), clamped and added to as those of i32_bytes: the four vectors of x_transpose4 as one again.
TORCHACCEL_INLINE I32 i32_bytes_of_quads(Pair a, Pair b, Pair low, Pair high, Pair add) {
  a = _mm512_adds_epi16(_mm512_min_epi16(high, _mm512_max_epi16(low, a)), add);
  b = _mm512_adds_epi16(_mm512_min_epi16(high, _mm512_max_epi16(low, b)), add);
  return _mm512_packus_epi16(a, b);
}

#else

// Without VNNI the bytes are widened to 16 bits, even and odd ones apart: vpmaddubsw would saturate.
struct X {
  __m512i even, odd;
};
struct W {
  __m512i even, odd;
};
TORCHACCEL_INLINE X x_split(__m512i a) {
  return {_mm512_and_si512(a, _mm512_set1_epi16(0xff)), _mm512_srli_epi16(a, 8)};
}
TORCHACCEL_INLINE W w_split(__m512i a) {
  return {_mm512_srai_epi16(_mm512_slli_epi16(a, 8), 8), _mm512_srai_epi16(a, 8)};
}
TORCHACCEL_INLINE X x_load(const uint8_t* p) { return x_split(_mm512_loadu_si512(p)); }
TORCHACCEL_INLINE X x_splat(const uint8_t* p) {
  int32_t word;
  memcpy(&word, p, 4);
  return x_split(_mm512_set1_epi32(word));
}
TORCHACCEL_INLINE W w_load(const int8_t* p) { return w_split(_mm512_loadu_si512(p)); }
TORCHACCEL_INLINE W w_splat(int32_t word) { return w_split(_mm512_set1_epi32(word)); }
TORCHACCEL_INLINE I32 dot4(I32 acc, X x, W w) {
  acc = _mm512_add_epi32(acc, _mm512_madd_epi16(x.even, w.even));
  return _mm512_add_epi32(acc, _mm512_madd_epi16(x.odd, w.odd));
}

#endif

// GCC's own headers start unmasked intrinsics from an undefined register and warn of it where they are inlined.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

// Of four vectors, dword j of the i-th becomes dword i of the j-th, in each 128 bits.
TORCHACCEL_INLINE void transpose4(__m512i* a) {
  const __m512i p = _mm512_unpacklo_epi32(a[0], a[1]), q = _mm512_unpackhi_epi32(a[0], a[1]);
  const __m512i r = _mm512_unpacklo_epi32(a[2], a[3]), s = _mm512_unpackhi_epi32(a[2], a[3]);
  a[0] = _mm512_unpacklo_epi64(p, r);
  a[1] = _mm512_unpackhi_epi64(p, r);
  a[2] = _mm512_unpacklo_epi64(q, s);
  a[3] = _mm512_unpackhi_epi64(q, s);
}

// The same of 16 whole vectors.
TORCHACCEL_INLINE void transpose16(__m512i (&a)[16]) {
  for (int i = 0; i < 16; i += 4) transpose4(a + i);
  for (int j = 0; j < 4; ++j) {  // a[4 * q + j]: dwords j, j + 4, j + 8, j + 12 of vectors 4 * q .. 4 * q + 3
    const __m512i p = _mm512_shuffle_i32x4(a[j], a[j + 4], 0x88), q = _mm512_shuffle_i32x4(a[j], a[j + 4], 0xdd);
    const __m512i r = _mm512_shuffle_i32x4(a[j + 8], a[j + 12], 0x88);
    const __m512i s = _mm512_shuffle_i32x4(a[j + 8], a[j + 12], 0xdd);
    a[j] = _mm512_shuffle_i32x4(p, r, 0x88);
    a[j + 8] = _mm512_shuffle_i32x4(p, r, 0xdd);
    a[j + 4] = _mm512_shuffle_i32x4(q, s, 0x88);
    a[j + 12] = _mm512_shuffle_i32x4(q, s, 0xdd);
  }
}

// Of vectors j and j + 4, the second and fourth 128 bits of one change places with the first and third of the other.
TORCHACCEL_INLINE void exchange(__m512i (&a)[8]) {
  const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13), high = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
  for (int j = 0; j < 4; ++j) {
    const __m512i p = a[j], q = a[j + 4];
    a[j] = _mm512_permutex2var_epi64(p, low, q);
    a[j + 4] = _mm512_permutex2var_epi64(p, high, q);
  }
}

template <int N>
TORCHACCEL_INLINE void store_rows(const __m512i (&a)[N], int dwords, uint32_t flip, uint8_t* dst, int64_t stride) {
  const __m512i flips = _mm512_set1_epi32(static_cast<int32_t>(flip));
  for (int d = 0; d < N; ++d) {
    if (d < dwords) _mm512_storeu_si512(dst + d * stride, _mm512_xor_si512(a[d], flips));
  }
}

// dst[d * stride + 4 * r ...] = dword d of rows[r], XOR flip; 16 rows, 1 to 16 dwords.
TORCHACCEL_INLINE void transpose16(const uint8_t* const* rows, int dwords, uint32_t flip, uint8_t* dst,
                                   int64_t stride) {
  __m512i a[16], halves[8];
  if (dwords == 16) {  // without masks and branches
    for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(rows[i]);
    transpose16(a);
    store_rows(a, 16, flip, dst, stride);
  } else if (dwords > 8) {
    for (int i = 0; i < 16; ++i) a[i] = _mm512_maskz_loadu_epi32(first_n(dwords), rows[i]);
    transpose16(a);
    store_rows(a, dwords, flip, dst, stride);
  } else {  // half the shuffles, with rows i and i + 8 in a vector
    const __mmask8 mask = static_cast<__mmask8>(first_n(dwords));
    for (int i = 0; i < 8; ++i) {
      const __m256i low = _mm256_maskz_loadu_epi32(mask, rows[i]), high = _mm256_maskz_loadu_epi32(mask, rows[i + 8]);
      halves[i] = _mm512_inserti32x8(_mm512_castsi256_si512(low), high, 1);
    }
    transpose4(halves);
    transpose4(halves + 4);
    exchange(halves);
    store_rows(halves, dwords, flip, dst, stride);
  }
}

// to[at[i] + k] = float i of vectors[k], k < counts[i]; counts of up to `wide`, 1 to 16.
TORCHACCEL_INLINE void scatter16(const uint8_t* const* vectors, int64_t wide, float* to, const int64_t* at,
                                 const int64_t* counts) {
  __m512i a[16], halves[8];
  if (wide > 8) {
    for (int k = 0; k < 16; ++k) a[k] = _mm512_loadu_si512(vectors[k]);
    transpose16(a);
    for (int i = 0; i < 16; ++i) _mm512_mask_storeu_epi32(to + at[i], first_n(counts[i]), a[i]);
  } else {
    for (int k = 0; k < 8; ++k) halves[k] = _mm512_loadu_si512(vectors[k]);
    exchange(halves);
    transpose4(halves);
    transpose4(halves + 4);
    for (int i = 0; i < 8; ++i) {
      const __m256i low = _mm512_castsi512_si256(halves[i]), high = _mm512_extracti32x8_epi32(halves[i], 1);
      _mm256_mask_storeu_epi32(to + at[i], static_cast<__mmask8>(first_n(counts[i])), low);
      _mm256_mask_storeu_epi32(to + at[i + 8], static_cast<__mmask8>(first_n(counts[i + 8])), high);
    }
  }
}
