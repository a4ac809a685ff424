// Pooling of a chain: maxima over windows, all lanes at once, and the average of an image; see chain.h.
#pragma once

#include "chain_moves.inl"

// Max-pooling by the offsets of a window's taps, as a convolution reads them; tasks [begin, end) of planes. T: what
// places are made of; NaN is the greatest.
template <typename T>
static void chain_max_pool(const ChainStep& s, const ChainData& d, int64_t begin, int64_t end) {
  typedef T Places __attribute__((vector_size(64)));
  const int32_t* offsets = d.indices + s.offsets;
  for (int64_t plane = begin; plane < end; ++plane) {
    for (int64_t row = 0; row < s.rows; ++row) {
      const uint8_t* x = d.arena + s.x + plane * s.x_plane + row * s.x_down;
      uint8_t* y = d.arena + s.y + plane * s.y_plane + row * s.y_pitch;
      for (int64_t column = 0; column < s.columns; ++column, x += s.x_across, y += 64) {
        Places best;
        memcpy(&best, x + offsets[0], 64);
        for (int64_t i = 1; i < s.blocks; ++i) {
          Places here;
          memcpy(&here, x + offsets[i], 64);
          best = (here > best) | (here != here) ? here : best;
        }
        memcpy(y, &best, 64);
      }
    }
  }
}

// The sums over an image of what a place of a plane is made of: kMost of T.
template <typename T, typename Sum, int kMost>
TORCHACCEL_INLINE void chain_sum(const ChainStep& s, const ChainData& d, int64_t plane, Sum* sums) {
  for (int c = 0; c < kMost; ++c) sums[c] = 0;
  for (int64_t first = 0; first < s.w; first += kChainPixels) {
    const ChainColumns columns(s.x_grid, first, s.w);
    for (int64_t row = 0; row < s.h; ++row) {
      const uint8_t* x = d.arena + s.x + plane * s.x_plane + chain_row(s.x_grid, s.x_pitch, d.image, row);
      for (int64_t i = 0; i < columns.count; ++i) {
        T place[kMost];
        memcpy(place, x + columns.at[i], 4);
        for (int c = 0; c < kMost; ++c) sums[c] += place[c];
      }
    }
  }
}

// The average of planes [begin, end) of bytes, to the tensor outside.
static void chain_average_int8(const ChainStep& s, const ChainData& d, int64_t begin, int64_t end) {
  const float* floats = d.floats + s.floats;
  for (int64_t plane = begin; plane < end; ++plane) {
    int32_t sums[4];
    chain_sum<uint8_t, int32_t, 4>(s, d, plane, sums);
    for (int64_t c = 0; c < 4 && 4 * plane + c < s.channels; ++c) {
      const int32_t sum = sums[c] - static_cast<int32_t>(s.residual_zero_point * s.h * s.w);
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

// The mean of planes [begin, end) of floats, to the tensor outside; summed in float64, so that its size does not
// matter.
static void chain_average_f32(const ChainStep& s, const ChainData& d, int64_t begin, int64_t end) {
  for (int64_t plane = begin; plane < end; ++plane) {
    double sum;
    chain_sum<float, double, 1>(s, d, plane, &sum);
    static_cast<float*>(d.out)[plane] = static_cast<float>(sum / static_cast<double>(s.h * s.w));
  }
}
