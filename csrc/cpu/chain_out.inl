// A tile of an int8 chain's convolution, and how its sums become bytes: requantized in registers, four channels making
// the four bytes of a place.
#pragma once

#include "chain_curve.inl"
#include "unroll.h"

struct ChainTile {
  const uint8_t* x;         // what the first output reads, plane 0
  int64_t across;           // from there to what the next one reads
  const uint8_t* residual;  // at the first output, this plane
  uint8_t* y;
  int64_t y_across;
};

// What lies between a sum and its requantization: `kCurved` for an activation that is more than bounds, after a
// residual where there is one.
enum class ChainFinish { kPlain, kResidual, kCurved };

// What requantizes four channels.
struct ChainOut {
  const int32_t* starts;
  const float *scale, *bias;
  F32 inverse, residual_scale;
  I32 residual_shift;
  Pair low, high, zero_point;  // of steps
  Activation activation;       // of kCurved
  bool adds;
};

// The steps from the zero point of sums of one channel: (float(sum) * scale + bias + residual) / scale_out. The plan
// makes sure that they fit an int32, and most activations are bounds of steps.
template <ChainFinish kFinish>
TORCHACCEL_INLINE I32 chain_steps(const ChainOut& out, I32 sum, F32 scale, F32 bias, X added, W which) {
  F32 y = f32_add(f32_mul(f32_of(sum), scale), bias);
  if (kFinish == ChainFinish::kResidual || (kFinish == ChainFinish::kCurved && out.adds)) {
    y = f32_add(y, f32_mul(f32_of(dot4(out.residual_shift, added, which)), out.residual_scale));
  }
  if (kFinish == ChainFinish::kCurved) y = chain_curve(out.activation, y);
  return i32_round(f32_mul(y, out.inverse));
}

// The bytes of a vector of places, from the steps of four channels.
TORCHACCEL_INLINE void chain_store(const ChainOut& out, uint8_t* y, Pair first, Pair last) {
  i32_store(reinterpret_cast<int32_t*>(y), i32_bytes(first, last, out.low, out.high, out.zero_point));
}
