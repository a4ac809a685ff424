// Pooling of a chain: maxima over windows, all lanes at once, and the average of an image; see chain.h.
#pragma once

#include "chain_moves.inl"
#include "unroll.h"

// The greatest bytes of the `count` taps of V windows, which begin `across` apart.
template <int V>
TORCHACCEL_INLINE void chain_greatest_int8(const uint8_t* x, int64_t across, const int32_t* offsets, int64_t count,
                                           uint8_t* y) {
  typedef uint8_t Bytes64 __attribute__((vector_size(64)));
  Bytes64 best[V] = {};
  for (int64_t i = 0; i < count; ++i) {
    TORCHACCEL_UNROLL for (int v = 0; v < V; ++v) {
      Bytes64 here;
      memcpy(&here, x + offsets[i] + v * across, 64);
      best[v] = here > best[v] ? here : best[v];
    }
  }
  TORCHACCEL_UNROLL for (int v = 0; v < V; ++v) memcpy(y + 64 * v, &best[v], 64);
}

// The same of float32; NaN is greater than all, found by its bits.
template <int V>
TORCHACCEL_INLINE void chain_greatest_f32(const uint8_t* x, int64_t across, const int32_t* offsets, int64_t count,
                                          uint8_t* y) {
  F32 best[V];
  I32 bits[V];
  TORCHACCEL_UNROLL for (int v = 0; v < V; ++v) best[v] = f32_splat(-__builtin_inff()), bits[v] = i32_splat(0);
  for (int64_t i = 0; i < count; ++i) {
    TORCHACCEL_UNROLL for (int v = 0; v < V; ++v) {
      const F32 here = f32_load(reinterpret_cast<const float*>(x + offsets[i] + v * across));
      best[v] = f32_max(here, best[v]);
      bits[v] = i32_max(bits[v], i32_magnitude(here));
    }
  }
  TORCHACCEL_UNROLL for (int v = 0; v < V; ++v) {
    const F32 below = f32_of(i32_sub(i32_splat(0x7f800000), bits[v]));  // infinity's bits
    f32_store(reinterpret_cast<float*>(y + 64 * v), f32_if_negative(below, f32_splat(__builtin_nanf("")), best[v]));
  }
}

using ChainGreatest = void (*)(const uint8_t* x, int64_t across, const int32_t* offsets, int64_t count, uint8_t* y);

// Max-pooling by the offsets of a window's taps, as a convolution reads them; tasks [begin, end) of planes.
template <ChainGreatest kOne, ChainGreatest kFour>
static void chain_max_pool(const ChainStep& s, const ChainData& d, int64_t begin, int64_t end) {
  const int32_t* offsets = d.indices + s.offsets;
  for (int64_t plane = begin; plane < end; ++plane) {
    for (int64_t row = 0; row < s.rows; ++row) {
      const uint8_t* x = d.arena + s.x + plane * s.x_plane + row * s.x_down;
      uint8_t* y = d.arena + s.y + plane * s.y_plane + row * s.y_pitch;
      int64_t column = 0;
      for (; column + 4 <= s.columns; column += 4) {
        kFour(x + column * s.x_across, s.x_across, offsets, s.blocks, y + 64 * column);
      }
      for (; column < s.columns; ++column) {
        kOne(x + column * s.x_across, s.x_across, offsets, s.blocks, y + 64 * column);
      }
    }
  }
}

// Sums over an image: of what lies steps[c] bytes from the first pixel, c = 0 .. 3.
template <typename Sum>
struct ChainSums {
  Sum of[4];
};

template <typename T, typename Sum>
TORCHACCEL_INLINE ChainSums<Sum> chain_sums(const ChainStep& s, const ChainData& d, const uint8_t* x,
                                            const int64_t (&steps)[4]) {
  ChainSums<Sum> sums = {};
  for (int64_t first = 0; first < s.w; first += kChainPixels) {
    const ChainColumns columns(s.x_grid, first, s.w);
    ChainAxis rows = chain_rows(s.x_grid, s.x_pitch, d.image);
    for (int64_t row = 0; row < s.h; ++row, rows.advance(1)) {
      for (int64_t i = 0; i < columns.count; ++i) {
        for (int c = 0; c < 4; ++c) {
          T value;
          memcpy(&value, x + rows.at + columns.at[i] + steps[c], sizeof(T));
          sums.of[c] += value;
        }
      }
    }
  }
  return sums;
}

// The average of planes [begin, end) of bytes, to the tensor outside.
static void chain_average_int8(const ChainStep& s, const ChainData& d, int64_t begin, int64_t end) {
  const float* floats = d.floats + s.floats;
  for (int64_t plane = begin; plane < end; ++plane) {
    const auto sums = chain_sums<uint8_t, int32_t>(s, d, d.arena + s.x + plane * s.x_plane, {0, 1, 2, 3});
    for (int64_t c = 0; c < 4 && 4 * plane + c < s.channels; ++c) {
      const int32_t sum = sums.of[c] - static_cast<int32_t>(s.residual_zero_point * s.h * s.w);
      const float y = static_cast<float>(sum) * floats[0];
      if (d.out_float) {
        static_cast<float*>(d.out)[4 * plane + c] = y;
      } else {
        alignas(64) int32_t steps[16];
        i32_store(steps,
                  i32_round(f32_min(f32_splat(floats[3]),
                                    f32_max(f32_splat(floats[2]), f32_mul(f32_splat(y), f32_splat(floats[1]))))));
        const int32_t q = steps[0] + static_cast<int32_t>(s.zero_point);
        static_cast<uint8_t*>(d.out)[4 * plane + c] = static_cast<uint8_t>(s.flip != 0 ? q ^ 0x80 : q);
      }
    }
  }
}

// The mean of planes [begin, end) of floats, four at a time, to the tensor outside; summed in float64, so that its size
// does not matter.
static void chain_average_f32(const ChainStep& s, const ChainData& d, int64_t begin, int64_t end) {
  const double pixels = static_cast<double>(s.h * s.w);
  for (int64_t plane = begin; plane < end; plane += 4) {
    const int64_t last = end - 1 - plane, p = s.x_plane;  // those that do not exist repeat the last one
    const auto sums =
        chain_sums<float, double>(s, d, d.arena + s.x + plane * p,
                                  {0, p * (last < 1 ? last : 1), p * (last < 2 ? last : 2), p * (last < 3 ? last : 3)});
    for (int64_t c = 0; c < 4 && c <= last; ++c) {
      static_cast<float*>(d.out)[plane + c] = static_cast<float>(sums.of[c] / pixels);
    }
  }
}
