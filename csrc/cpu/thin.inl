// A matrix product of up to 4 rows: bound by the weights, which are read once, from memory. The rows stay as they lie
// (no transposed panel), and more channels than in a dense tile are under way at once: their sums do not wait for each
// other, and each is a stream of its own for the hardware to run ahead on. Roofline: the speed of one core's reads.
#pragma once

#include "epilogue.inl"

// How far ahead of their use weights are asked for: the hardware runs ahead to the end of a page.
constexpr int64_t kPrefetchBytes = 4096;
constexpr int kThinVectors = kTileVectors == 2 ? 4 : 1;
constexpr int64_t kThinChannels = kThinVectors * kLanes;

// acc [kRows][kThinChannels] = x [kRows][depth4][4] times kVectors blocks of 16 channels.
template <int kRows, int kVectors>
static void thin_tile(const uint8_t* x, const int8_t* w, int64_t depth4, int32_t* acc) {
  I32 sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) sums[r][v] = i32_splat(0);
  }
  for (int64_t k = 0; k < depth4; ++k, x += 4, w += 64) {
    W weights[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      weights[v] = w_load(w + v * depth4 * 64);
      if (kRows > 1) __builtin_prefetch(w + v * depth4 * 64 + kPrefetchBytes);  // a single row is read as fast without
    }
    for (int r = 0; r < kRows; ++r) {
      const X activations = x_splat(x + r * depth4 * 4);
      for (int v = 0; v < kVectors; ++v) sums[r][v] = dot4(sums[r][v], activations, weights[v]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) i32_store(acc + r * kThinChannels + 16 * v, sums[r][v]);
  }
}

template <int kVectors>
static void thin_rows(const uint8_t* x, int64_t rows, const int8_t* w, int64_t depth4, int32_t* acc) {
  switch (rows) {
    case 1:
      return thin_tile<1, kVectors>(x, w, depth4, acc);
    case 2:
      return thin_tile<2, kVectors>(x, w, depth4, acc);
    case 3:
      return thin_tile<3, kVectors>(x, w, depth4, acc);
    default:
      return thin_tile<4, kVectors>(x, w, depth4, acc);
  }
}

// Units [begin, end) of 32 output channels.
static void thin(const Input& in, const DenseWeights& weights, const Epilogue& e, int64_t begin, int64_t end,
                 uint8_t* scratch) {
  alignas(64) int32_t acc[kThinRows * kThinChannels];
  const int64_t rows = in.rows(), depth = in.depth(), depth4 = in.depth4();
  const uint8_t flip = in.flip & 0xff;
  for (int64_t r = 0; r < rows; ++r) {
    uint8_t* to = scratch + r * 4 * depth4;
    for (int64_t k = 0; k < depth; ++k) to[k] = in.data[r * depth + k] ^ flip;
    memset(to + depth, 0, static_cast<size_t>(4 * depth4 - depth));
  }
  const int64_t last = end * kUnitChannels < weights.group_channels ? end * kUnitChannels : weights.group_channels;
  for (int64_t channel = begin * kUnitChannels; channel < last; channel += kThinChannels) {
    const int64_t n = last - channel < kThinChannels ? last - channel : kThinChannels;
    const int8_t* w = weights.packed + channel * 4 * depth4;
    if (n > kThinChannels - kLanes) {
      thin_rows<kThinVectors>(scratch, rows, w, depth4, acc);
    } else {
      for (int64_t c = 0; c < n; c += kLanes) thin_rows<1>(scratch, rows, w + c * 4 * depth4, depth4, acc + c);
    }
    finish(e, acc, kThinChannels, 0, rows, channel, n);
  }
}
