// What sparse float32 kernels have in common: nonzeros times vectors of pixels, wherever their inputs lie.
//
// A step is one nonzero of each of four output channels: where its input lies, in bytes, and its value. It costs a
// broadcast and one multiply-add for each vector of pixels, whose operand is loaded straight from L1. Each step's
// offsets are read two steps ahead: behind the loads of the vectors, which keep both ports busy, they would come too
// late; so lists of offsets end in two more. Roofline: the two loads a cycle. Sums are fused multiply-adds in ascending
// K, rounded once a product.
#pragma once

#include "unroll.h"

// The offsets of four channels, 16 or 32 bits each.
struct Offsets16 {
  using Word = uint16_t;
  uint64_t all;
  static inline __attribute__((always_inline)) Offsets16 load(const Word* p) {
    Offsets16 o;
    memcpy(&o, p, sizeof(o));
    asm volatile("" : "+r"(o.all));  // keeps the load here
    return o;
  }
  Word operator[](int i) const { return static_cast<Word>(all >> 16 * i); }
};

struct Offsets32 {
  using Word = int32_t;
  uint64_t low, high;
  static inline __attribute__((always_inline)) Offsets32 load(const Word* p) {
    Offsets32 o;
    memcpy(&o, p, sizeof(o));
    asm volatile("" : "+r"(o.low), "+r"(o.high));
    return o;
  }
  Word operator[](int i) const { return static_cast<Word>((i < 2 ? low : high) >> 32 * (i % 2)); }
};

// sums [kRows][V] of channels `row` .. `row + kRows - 1` of four, from vectors kAcross bytes apart; kShared: the four
// have one offset.
template <class Offsets, int kRows, int V, int kAcross, bool kShared>
TORCHACCEL_INLINE void multiply_steps(const float* values, const typename Offsets::Word* offsets, int64_t steps,
                                      int row, const uint8_t* x, F32 (&sums)[kRows][V]) {
  if (kShared) {
    for (int64_t i = 0; i < steps; ++i, values += 4) {
      const uint8_t* from = x + offsets[i];
      const Quad quad = quad_load(values);
      TORCHACCEL_UNROLL for (int v = 0; v < V; ++v) {
        const F32 pixels = f32_load(reinterpret_cast<const float*>(from + kAcross * v));
        TORCHACCEL_UNROLL for (int r = 0; r < kRows; ++r) sums[r][v] =
            f32_fma(pixels, quad_splat(quad, row + r), sums[r][v]);
      }
    }
    return;
  }
  Offsets next = Offsets::load(offsets), after = Offsets::load(offsets + 4);
  for (int64_t i = 0; i < steps; ++i, values += 4) {
    const Offsets here = next;
    offsets += 4;
    next = after;
    after = Offsets::load(offsets + 4);
    const Quad quad = quad_load(values);
    TORCHACCEL_UNROLL for (int r = 0; r < kRows; ++r) {
      const uint8_t* from = x + here[row + r];
      const F32 weight = quad_splat(quad, row + r);
      TORCHACCEL_UNROLL for (int v = 0; v < V; ++v) sums[r][v] =
          f32_fma(f32_load(reinterpret_cast<const float*>(from + kAcross * v)), weight, sums[r][v]);
    }
  }
}
