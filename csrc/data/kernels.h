// Inner loops, compiled once for each instruction set from kernels.inl; `kernels()` picks one for this processor.
#pragma once

#include <cstdint>

namespace torchaccel::data {

constexpr int kRowSlack = 32;    // bytes behind the last pixel of a row that may be read
constexpr int kWeightBits = 22;  // of a resampling weight, as Pillow has them: 32 less 8 of a pixel and 2 of sums

// The weights of one direction of resizing: output x is the sum of weights[x * width + k] * input[first[x] + k] over
// k < count[x]. `halves` holds the same for 4 inputs at a time, from input start[x] on, [size][blocks][8]: the upper 11
// bits of four weights, then their lower 11 bits, zero where there is no weight.
struct Weights {
  const int *first, *count;
  const int32_t* weights;
  const int* start;
  const int16_t* halves;
  int width, blocks, size;
};
constexpr int kHalfBits = 11;

struct Kernels {
  const char* name;
  // One row of pixels of `channels` bytes. Reads up to kRowSlack bytes behind the last pixel, and writes up to 3.
  void (*across)(const uint8_t* row, const Weights& weights, int channels, uint8_t* out);
  // out[i] = sum_k weight[k] * rows[k][i].
  void (*down)(const uint8_t* const* rows, const int32_t* weight, int count, int bytes, uint8_t* out);
  // The pixels in reverse. Reads up to kRowSlack bytes behind the last pixel.
  void (*reverse)(const uint8_t* row, int size, int channels, uint8_t* out);
  // Pixels of 3 bytes into 3 planes.
  void (*split)(const uint8_t* row, int size, int64_t plane, uint8_t* out);
  // out[i] = table[channel of i][row[i]], interleaved as the row is, or in planes.
  void (*look_up_float)(const uint8_t* row, const float* table, int size, int channels, float* out);
  void (*look_up_half)(const uint8_t* row, const uint16_t* table, int size, int channels, uint16_t* out);
  void (*planes_float)(const uint8_t* row, const float* table, int size, int channels, int64_t plane, float* out);
  void (*planes_half)(const uint8_t* row, const uint16_t* table, int size, int channels, int64_t plane, uint16_t* out);
};

const Kernels& kernels();

namespace scalar {
Kernels make();
}  // namespace scalar
namespace avx2 {
Kernels make();
}  // namespace avx2

}  // namespace torchaccel::data
