// Float activations times int8 weights, which are widened to float32 in registers. Up to 4 rows it is bound by the
// weights, read once: kThinVectors streams, few rows of sums. Beyond, kTileRows rows share what was widened, and the
// weights of a unit of 32 channels stay in L2 while all rows pass over them. Sums are float32 with fused multiply-adds:
// apart they would take twice the time, and no other device sums in the same order anyway.
#pragma once

#include "dense.inl"

// acc [kRows][kThinChannels] = x [kRows][k] times kVectors blocks [k][16] of weights.
template <int kRows, int kVectors>
static void weight_only_tile(const float* x, const int8_t* w, int64_t k, float* acc) {
  F32 sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) sums[r][v] = f32_splat(0.0f);
  }
  for (int64_t i = 0; i < k; ++i) {
    F32 weights[kVectors];
    for (int v = 0; v < kVectors; ++v) weights[v] = f32_of(i32_load_s8(w + 16 * (v * k + i)));
    for (int r = 0; r < kRows; ++r) {
      const F32 activation = f32_splat(x[r * k + i]);
      for (int v = 0; v < kVectors; ++v) sums[r][v] = f32_fma(activation, weights[v], sums[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) f32_store(acc + r * kThinChannels + 16 * v, sums[r][v]);
  }
}

// The rows of one tile: up to 4, or 5 to 8 where kTileRows is 8.
template <int kVectors>
static void weight_only_rows(const float* x, int64_t rows, const int8_t* w, int64_t k, float* acc) {
  constexpr int kMany = kTileRows >= 8 ? 8 : 4, kFew = kTileRows >= 8 ? kVectors / 2 + kVectors % 2 : kVectors;
  if (kMany == 8 && rows > 4) {
    for (int v = 0; v < kVectors; v += kFew, w += kFew * 16 * k, acc += kFew * 16) {
      switch (rows) {
        case 5:
          weight_only_tile<kMany - 3, kFew>(x, w, k, acc);
          break;
        case 6:
          weight_only_tile<kMany - 2, kFew>(x, w, k, acc);
          break;
        case 7:
          weight_only_tile<kMany - 1, kFew>(x, w, k, acc);
          break;
        default:
          weight_only_tile<kMany, kFew>(x, w, k, acc);
      }
    }
    return;
  }
  switch (rows) {
    case 1:
      return weight_only_tile<1, kVectors>(x, w, k, acc);
    case 2:
      return weight_only_tile<2, kVectors>(x, w, k, acc);
    case 3:
      return weight_only_tile<3, kVectors>(x, w, k, acc);
    default:
      return weight_only_tile<4, kVectors>(x, w, k, acc);
  }
}

// Units [begin, end) of 32 output channels.
static void weight_only(const WeightOnly& p, int64_t begin, int64_t end) {
  alignas(64) float acc[kTileRows * kThinChannels];
  const int64_t last = end * kUnitChannels < p.channels ? end * kUnitChannels : p.channels;
  const F32 floor = f32_splat(is_rectified(p.activation) ? 0.0f : -__builtin_inff());
  const bool further = !is_plain(p.activation);
  for (int64_t channel = begin * kUnitChannels; channel < last; channel += kThinChannels) {
    const int64_t count = last - channel < kThinChannels ? last - channel : kThinChannels;
    const int8_t* w = p.packed + channel * p.k;
    for (int64_t row = 0; row < p.rows; row += kTileRows) {
      const int64_t rows = p.rows - row < kTileRows ? p.rows - row : kTileRows;
      const float* x = p.x + row * p.k;
      if (count > kThinChannels - kLanes) {
        weight_only_rows<kThinVectors>(x, rows, w, p.k, acc);
      } else {
        for (int64_t c = 0; c < count; c += kLanes) weight_only_rows<1>(x, rows, w + c * p.k, p.k, acc + c);
      }
      for (int64_t c = 0; c < count; c += kLanes) {
        const int64_t at = channel + c, n = count - c < kLanes ? count - c : kLanes;
        const F32 scale = f32_load_n(p.scale_b + at, n);
        // Adding -0 changes nothing.
        const F32 bias = p.bias == nullptr ? f32_splat(-0.0f) : f32_load_n(p.bias + at, n);
        for (int64_t r = 0; r < rows; ++r) {
          F32 y = f32_add(f32_mul(f32_load(acc + r * kThinChannels + c), scale), bias);
          y = f32_max(floor, y);
          if (further) y = activate(p.activation, y);
          f32_store_n(p.out + (row + r) * p.channels + at, y, n);
        }
      }
    }
  }
}
