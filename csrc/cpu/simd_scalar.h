// 16 lanes of the compiler's generic vectors, which it lowers to plain x86-64: for processors without AVX2, and as the
// yardstick of the other instruction sets. No simd_*.h includes anything: what an instruction set needs is included
// before its target pragma.

#define TORCHACCEL_INLINE static inline __attribute__((always_inline))

// Accumulators of 16 lanes that fit the register file, and the dense tile (rows x vectors of 16 output channels).
constexpr int kAccumulators = 4, kTileRows = 4, kTileVectors = 1;
constexpr int kVectorBytes = 16;                       // of one register
constexpr int kChainVectors1 = 2, kChainVectors4 = 1;  // of a chain's tile, for blocks of 1x4 and 4x4
constexpr int kRowsAtOnce = 1;                         // of sparse float rows

typedef int32_t I32 __attribute__((vector_size(64)));
typedef uint32_t U32 __attribute__((vector_size(64)));
typedef float F32 __attribute__((vector_size(64)));
typedef int8_t S8x16 __attribute__((vector_size(16)));
typedef uint8_t U8x16 __attribute__((vector_size(16)));

template <typename V>
TORCHACCEL_INLINE V load_as(const void* p) {
  V out;
  memcpy(&out, p, sizeof(V));
  return out;
}

TORCHACCEL_INLINE I32 i32_load(const int32_t* p) { return load_as<I32>(p); }
TORCHACCEL_INLINE void i32_store(int32_t* p, const I32& a) { memcpy(p, &a, 64); }
TORCHACCEL_INLINE I32 i32_splat(int32_t x) { return I32{} + x; }
TORCHACCEL_INLINE I32 i32_add(const I32& a, const I32& b) { return (I32)((U32)a + (U32)b); }
TORCHACCEL_INLINE I32 i32_sub(const I32& a, const I32& b) { return (I32)((U32)a - (U32)b); }
TORCHACCEL_INLINE I32 i32_mul(const I32& a, const I32& b) { return (I32)((U32)a * (U32)b); }
TORCHACCEL_INLINE I32 i32_max(const I32& a, const I32& b) { return a > b ? a : b; }
TORCHACCEL_INLINE I32 i32_shl8(const I32& a) { return (I32)((U32)a << 8); }
// At the end of a loop that sums into a vector; for the instruction sets whose registers hold one.
TORCHACCEL_INLINE void i32_pin(I32&) {}
// Lane i is lane lanes[i] of a, or lane i of b where lanes[i] is -1.
TORCHACCEL_INLINE I32 i32_permute(const I32& a, const int32_t* lanes, const I32& b) {
  I32 permuted = b;
  for (int i = 0; i < 16; ++i) {
    if (lanes[i] >= 0) permuted[i] = a[lanes[i]];
  }
  return permuted;
}
// The sign of lane i as bit i.
TORCHACCEL_INLINE int i32_signs(const I32& a) {
  int bits = 0;
  for (int i = 0; i < 16; ++i) bits |= (a[i] < 0) << i;
  return bits;
}
TORCHACCEL_INLINE I32 i32_load_s8(const int8_t* p) { return __builtin_convertvector(load_as<S8x16>(p), I32); }
TORCHACCEL_INLINE I32 i32_load_u8(const uint8_t* p) { return __builtin_convertvector(load_as<U8x16>(p), I32); }
TORCHACCEL_INLINE I32 i32_clamp(const I32& a, int32_t low, int32_t high) {
  const I32 raised = a < low ? I32{} + low : a;
  return raised > high ? I32{} + high : raised;
}
TORCHACCEL_INLINE void i32_store_s8(int8_t* p, const I32& a) {
  const S8x16 bytes = __builtin_convertvector(i32_clamp(a, -128, 127), S8x16);
  memcpy(p, &bytes, 16);
}
TORCHACCEL_INLINE void i32_store_u8(uint8_t* p, const I32& a) {
  const U8x16 bytes = __builtin_convertvector(i32_clamp(a, 0, 255), U8x16);
  memcpy(p, &bytes, 16);
}
// Two vectors as 16 bits, saturated.
struct Pair {
  I32 a, b;
};
TORCHACCEL_INLINE Pair pair(const I32& a, const I32& b) {
  return {i32_clamp(a, -32768, 32767), i32_clamp(b, -32768, 32767)};
}
TORCHACCEL_INLINE Pair pair_splat(int32_t x) { return {i32_splat(x), i32_splat(x)}; }
// Byte c of lane i is lane i of vector c of (a, b), clamped to [low, high], plus `add`, saturated to a byte.
TORCHACCEL_INLINE I32 i32_bytes(const Pair& a, const Pair& b, const Pair& low, const Pair& high, const Pair& add) {
  const I32 four[4] = {a.a, a.b, b.a, b.b};
  I32 bytes = i32_splat(0);
  for (int c = 0; c < 4; ++c) {
    const I32 raised = four[c] > low.a ? four[c] : low.a, held = raised < high.a ? raised : high.a;
    bytes |= i32_clamp(held + add.a, 0, 255) << (8 * c);
  }
  return bytes;
}
// Half to even, for |x| below 2^22: adding 1.5 * 2^23 leaves no bits for a fraction.
TORCHACCEL_INLINE I32 i32_round(const F32& a) { return __builtin_convertvector((a + 12582912.0f) - 12582912.0f, I32); }
// The bits without the sign; as integers they order as the magnitudes do, infinity and NaN at the top.
TORCHACCEL_INLINE I32 i32_magnitude(const F32& a) { return (I32)a & 0x7fffffff; }

TORCHACCEL_INLINE F32 f32_load(const float* p) { return load_as<F32>(p); }
TORCHACCEL_INLINE void f32_store(float* p, const F32& a) { memcpy(p, &a, 64); }
TORCHACCEL_INLINE F32 f32_splat(float x) {
  uint32_t word;
  memcpy(&word, &x, 4);
  return (F32)(U32{} + word);  // as bits: 0.0f + -0.0f would lose the sign
}
TORCHACCEL_INLINE F32 f32_of(const I32& a) { return __builtin_convertvector(a, F32); }
TORCHACCEL_INLINE F32 f32_add(const F32& a, const F32& b) { return a + b; }
TORCHACCEL_INLINE F32 f32_sub(const F32& a, const F32& b) { return a - b; }
TORCHACCEL_INLINE F32 f32_mul(const F32& a, const F32& b) { return a * b; }
// a * b + c, rounded once where the processor can; here it cannot.
TORCHACCEL_INLINE F32 f32_fma(const F32& a, const F32& b, const F32& c) { return a * b + c; }
TORCHACCEL_INLINE F32 f32_div(const F32& a, const F32& b) { return a / b; }
// As the instructions do: the second operand where either is NaN.
TORCHACCEL_INLINE F32 f32_min(const F32& a, const F32& b) { return a < b ? a : b; }
TORCHACCEL_INLINE F32 f32_max(const F32& a, const F32& b) { return a > b ? a : b; }
TORCHACCEL_INLINE F32 f32_zero_if_nan(const F32& a) { return a == a ? a : F32{}; }
// b where a is below 0, else c.
TORCHACCEL_INLINE F32 f32_if_negative(const F32& a, const F32& b, const F32& c) { return a < 0.0f ? b : c; }
// 2^n, n in -126..127.
TORCHACCEL_INLINE F32 f32_exp2(const I32& n) { return (F32)((n + 127) << 23); }

// The first n floats, 1 to 16; the others are zero, and are not touched.
TORCHACCEL_INLINE F32 f32_load_n(const float* p, int64_t n) {
  F32 a = {};
  memcpy(&a, p, static_cast<size_t>(n) * 4);
  return a;
}
TORCHACCEL_INLINE void f32_store_n(float* p, const F32& a, int64_t n) { memcpy(p, &a, static_cast<size_t>(n) * 4); }
// Lane i is p[i] where bit i of `lanes` is set, else that of a; nothing else is read.
TORCHACCEL_INLINE F32 f32_merge(const F32& a, const float* p, uint32_t lanes) {
  F32 merged = a;
  for (int i = 0; i < 16; ++i) {
    if (lanes >> i & 1) merged[i] = p[i];
  }
  return merged;
}
// Lane i to p[i] where bit i of `lanes` is set; nothing else is touched.
TORCHACCEL_INLINE void f32_store_lanes(float* p, const F32& a, uint32_t lanes) {
  for (int i = 0; i < 16; ++i) {
    if (lanes >> i & 1) p[i] = a[i];
  }
}
// Past the caches, where the processor can; here it cannot.
TORCHACCEL_INLINE void f32_stream(float* p, const F32& a) { f32_store(p, a); }
TORCHACCEL_INLINE void f32_streamed() {}
// Lane i is p[2 * i] where bit i of `lanes` is set, else that of a; nothing else is read.
TORCHACCEL_INLINE F32 f32_merge_even(const F32& a, const float* p, uint32_t lanes) {
  F32 merged = a;
  for (int i = 0; i < 16; ++i) {
    if (lanes >> i & 1) merged[i] = p[2 * i];
  }
  return merged;
}

// Four weights, and one of them in every lane.
using Quad = const float*;
TORCHACCEL_INLINE Quad quad_load(const float* p) { return p; }
TORCHACCEL_INLINE F32 quad_splat(Quad q, int i) { return f32_splat(q[i]); }

// 16 groups of 4 bytes: unsigned activations, signed weights.
using X = U32;
using W = I32;
TORCHACCEL_INLINE X x_load(const uint8_t* p) { return load_as<X>(p); }
TORCHACCEL_INLINE X x_splat(const uint8_t* p) { return X{} + load_as<uint32_t>(p); }  // one group in every lane
TORCHACCEL_INLINE W w_load(const int8_t* p) { return load_as<W>(p); }
TORCHACCEL_INLINE W w_splat(int32_t word) { return W{} + word; }
// acc + the dot product of each lane's 4 activations and 4 weights, exact.
TORCHACCEL_INLINE I32 dot4(const I32& acc, const X& x, const W& w) {
  U32 sum = (U32)acc;
  for (int j = 0; j < 32; j += 8) sum += ((x >> j) & 0xffu) * (U32)((I32)((U32)w << (24 - j)) >> 24);
  return (I32)sum;
}

// dst[d * stride + 4 * r ...] = dword d of rows[r], XOR flip; 16 rows, 1 to 16 dwords.
TORCHACCEL_INLINE void transpose16(const uint8_t* const* rows, int dwords, uint32_t flip, uint8_t* dst,
                                   int64_t stride) {
  for (int d = 0; d < dwords; ++d) {
    for (int r = 0; r < 16; ++r) {
      const uint32_t word = load_as<uint32_t>(rows[r] + 4 * d) ^ flip;
      memcpy(dst + d * stride + 4 * r, &word, 4);
    }
  }
}

#include "scatter16.h"
