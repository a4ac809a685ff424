// Activations of a chain that are more than bounds.
#pragma once

#include "chain.h"
#include "epilogue.inl"

// A function, so that loops of products keep their registers.
static __attribute__((noinline)) F32 chain_curve(Activation activation, F32 y) { return activate(activation, y); }

// Of planes [begin, end) of `vectors` outputs of float32, from `y` on, where they lie.
static void chain_curve_f32(const ChainStep& s, uint8_t* y, int64_t begin, int64_t end, int64_t vectors) {
  const Activation activation = static_cast<Activation>(s.activation);
  for (int64_t plane = begin; plane < end; ++plane) {
    for (int64_t v = 0; v < vectors; ++v) {
      float* at = reinterpret_cast<float*>(y + chain_plane(s, plane) + 64 * s.spread * v);
      f32_store(at, activate(activation, f32_load(at)));
    }
  }
}
