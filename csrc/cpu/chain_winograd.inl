// Dense float32 convolutions of a chain with half the multiplications: Toom-Cook along rows, F(4, 3) and F(4, 4).
//
// Four neighbouring outputs of a row, a strip, are made from 6 or 7 inputs a row and channel, as products of
// polynomials are, by their values at 6 or 7 points: inputs are transformed once, by a step of its own, weights when
// the plan is made, and sums over channels and rows are transformed back. A layer of stride 2 is the sum of two, of its
// even columns and its odd ones, whose shorter kernel needs no point at infinity: 7 + 6 products for 28 of a 7x7
// kernel's row. In the layout of chains a neighbour is another vector, so all transforms are sums of whole vectors. For
// each point four channels by a tile of strips are multiplied as chain_f32.inl does, to the same roofline; a slab's
// sums wait in L2.
//
// Errors are as small as those of sums over all inputs of a strip; what is not finite spreads over the strip.
// Winograd, "Arithmetic Complexity of Computations", 1980; Lavin and Gray, "Fast Algorithms for Convolutional Neural
// Networks", 2015.
#pragma once

#include "chain_f32.inl"

// The points of F(4, kTaps) are +-roots and infinity, and 0 where their number is even; those of
// torchaccel/ops/_winograd.py.
template <int kTaps>
struct Winograd {
  static constexpr int kPoints = kTaps + 3, kPairs = kTaps - 1, kZero = kPoints % 2 == 0;

  static constexpr float root(int i) {
    constexpr float k3[] = {0.75f, 1.5f}, k4[] = {0.375f, 0.875f, 1.75f};
    return kTaps == 3 ? k3[i] : k4[i];
  }
  struct Polynomial {
    float c[kPairs + 1];
  };
  // The product of (t - root^2) over all roots but one; exact.
  static constexpr Polynomial product(int but) {
    Polynomial p = {{1.0f}};
    for (int i = 0; i < kPairs; ++i) {
      if (i == but) continue;
      for (int k = kPairs; k >= 0; --k) p.c[k] = (k > 0 ? p.c[k - 1] : 0.0f) - root(i) * root(i) * p.c[k];
    }
    return p;
  }
};

// The sum of coefficient k of the product times x[first + 2 * k].
template <int kTaps, int kBut>
TORCHACCEL_INLINE F32 winograd_sum(const F32 (&x)[kTaps + 3], int first) {
  constexpr int kDegree = Winograd<kTaps>::kPairs - (kBut >= 0);
  constexpr auto kProduct = Winograd<kTaps>::product(kBut);
  F32 sum = x[first + 2 * kDegree];
  TORCHACCEL_UNROLL for (int k = kDegree - 1; k >= 0; --k) sum =
      f32_fma(x[first + 2 * k], f32_splat(kProduct.c[k]), sum);
  return sum;
}

template <int kTaps, int kPair>
TORCHACCEL_INLINE void winograd_pairs(const F32 (&x)[kTaps + 3], F32 (&v)[kTaps + 3]) {
  using W = Winograd<kTaps>;
  if constexpr (kPair < W::kPairs) {
    const F32 odd = f32_mul(f32_splat(W::root(kPair)), winograd_sum<kTaps, kPair>(x, W::kZero));
    const F32 even = winograd_sum<kTaps, kPair>(x, W::kZero + 1);
    v[W::kZero + 2 * kPair] = f32_add(even, odd);
    v[W::kZero + 2 * kPair + 1] = f32_sub(even, odd);
    winograd_pairs<kTaps, kPair + 1>(x, v);
  }
}

// The inputs of a strip at the points: 0, each root and its opposite, infinity.
template <int kTaps>
TORCHACCEL_INLINE void winograd_input(const F32 (&x)[kTaps + 3], F32 (&v)[kTaps + 3]) {
  using W = Winograd<kTaps>;
  if (W::kZero) v[0] = winograd_sum<kTaps, -1>(x, 0);
  winograd_pairs<kTaps, 0>(x, v);
  v[W::kPoints - 1] = winograd_sum<kTaps, -1>(x, W::kZero);
}

// A strip from its sums at the points, `stride` floats apart, and its channel's bias.
template <int kTaps>
TORCHACCEL_INLINE void winograd_output(const float* sums, int64_t stride, F32 bias, F32 (&y)[4]) {
  using W = Winograd<kTaps>;
  y[0] = W::kZero ? f32_add(bias, f32_load(sums)) : bias;
  y[1] = y[2] = bias;
  y[3] = f32_add(bias, f32_load(sums + (W::kPoints - 1) * stride));
  TORCHACCEL_UNROLL for (int i = 0; i < W::kPairs; ++i) {
    const float a = W::root(i), *pair = sums + (W::kZero + 2 * i) * stride;
    const F32 plus = f32_load(pair), minus = f32_load(pair + stride);
    const F32 even = f32_add(plus, minus), odd = f32_sub(plus, minus);
    y[0] = f32_add(y[0], even);
    y[1] = f32_fma(odd, f32_splat(a), y[1]);
    y[2] = f32_fma(even, f32_splat(a * a), y[2]);
    y[3] = f32_fma(odd, f32_splat(a * a * a), y[3]);
  }
}

// Tasks [begin, end) of planes x rows: x at the points, as planes [points][phases][planes].
template <int kTaps>
static void winograd_transform(const ChainStep& s, const ChainData& d, int64_t begin, int64_t end) {
  constexpr int kPoints = Winograd<kTaps>::kPoints;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t plane = task / s.rows, row = task % s.rows;
    const uint8_t* x = d.arena + s.x + plane * s.x_plane + row * s.x_pitch;
    for (int64_t phase = 0; phase < s.stride_w; ++phase) {
      uint8_t* y = d.arena + s.y + (phase * s.planes + plane) * s.y_plane + row * s.y_pitch;
      for (int64_t strip = 0; strip < s.columns; ++strip, y += 64) {
        F32 in[kPoints], out[kPoints];
        TORCHACCEL_UNROLL for (int j = 0; j < kPoints; ++j) {
          const int64_t column = (4 * strip + j) * s.stride_w + phase;
          in[j] = column < s.w ? f32_load(reinterpret_cast<const float*>(x + 64 * column)) : f32_splat(0.0f);
        }
        winograd_input<kTaps>(in, out);
        TORCHACCEL_UNROLL for (int p = 0; p < kPoints; ++p)
            f32_store(reinterpret_cast<float*>(y + p * s.stride_w * s.planes * s.y_plane), out[p]);
      }
    }
  }
}

// The sums [points][kChainWinogradSlab][V] of a tile and slab, from x's first vector on.
template <int V>
static void winograd_multiply(const ChainStep& s, const ChainData& d, int64_t slab, const uint8_t* x) {
  const int64_t groups = (s.planes + 3) / 4, first_group = slab * kChainWinogradSlab / 4;
  const int64_t slab_end = first_group + kChainWinogradSlab / 4, end_group = slab_end < groups ? slab_end : groups;
  const int32_t* first = d.indices + s.row_offsets;
  for (int64_t part = 0; part < s.points * s.chunks; ++part) {
    const int64_t steps = first[part + 1] - first[part];
    const float* values = static_cast<const float*>(d.values) + s.values + 4 * groups * first[part];
    const int32_t* offsets = d.indices + s.offsets + first[part];
    float* sums_of_point = d.sums + 16 * V * kChainWinogradSlab * (part / s.chunks);
    for (int64_t g = first_group; g < end_group; ++g) {
      for (int row = 0; row < 4; row += kRowsAtOnce) {
        float* at = sums_of_point + 16 * V * (4 * (g - first_group) + row);
        F32 sums[kRowsAtOnce][V];
        TORCHACCEL_UNROLL for (int r = 0; r < kRowsAtOnce; ++r) {
          TORCHACCEL_UNROLL for (int v = 0; v < V; ++v) sums[r][v] =
              part % s.chunks == 0 ? f32_splat(0.0f) : f32_load(at + 16 * (V * r + v));
        }
        multiply_steps<Offsets32, kRowsAtOnce, V, 64, true>(values + 4 * g * steps, offsets, steps, row, x, sums);
        TORCHACCEL_UNROLL for (int r = 0; r < kRowsAtOnce; ++r) {
          TORCHACCEL_UNROLL for (int v = 0; v < V; ++v) f32_store(at + 16 * (V * r + v), sums[r][v]);
        }
      }
    }
  }
}

// The outputs of a tile's strips, from number `first` of a block's on.
template <int kTaps, int V>
static void winograd_finish(const ChainStep& s, const ChainData& d, int64_t slab, int64_t first) {
  const float* bias = d.floats + s.floats + 2;
  const F32 low = f32_splat(bias[-2]), high = f32_splat(bias[-1]);
  const Activation curve = static_cast<Activation>(s.activation);
  const int64_t strips = s.x_pitch / 64, begin = slab * kChainWinogradSlab;
  const int64_t end = begin + kChainWinogradSlab < s.planes ? begin + kChainWinogradSlab : s.planes;
  for (int64_t channel = begin; channel < end; ++channel) {
    for (int v = 0; v < V; ++v) {
      const int64_t row = (first + v) / strips, column = 4 * ((first + v) % strips);
      F32 y[4];
      winograd_output<kTaps>(d.sums + 16 * (V * (channel - begin) + v), 16 * V * kChainWinogradSlab,
                             f32_splat(bias[channel]), y);
      uint8_t* to = d.arena + s.y + channel * s.y_plane + row * s.y_pitch + 64 * column;
      const uint8_t* residual =
          d.arena + s.residual + channel * s.residual_plane + row * s.residual_pitch + 64 * column;
      const int64_t count = s.y_grid.block_w - column;
      TORCHACCEL_UNROLL for (int i = 0; i < 4; ++i) {
        if (i >= count) continue;
        if (s.residual >= 0) y[i] = f32_add(y[i], f32_load(reinterpret_cast<const float*>(residual + 64 * i)));
        const F32 bounded = f32_min(high, f32_max(low, y[i]));
        f32_store(reinterpret_cast<float*>(to + 64 * i), s.activation == 0 ? bounded : chain_curve(curve, bounded));
      }
    }
  }
}

template <int V>
static void winograd_tile(const ChainStep& s, const ChainData& d, int64_t slab, const uint8_t* x, int64_t first) {
  winograd_multiply<V>(s, d, slab, x);
  (s.points == 6 ? winograd_finish<3, V> : winograd_finish<4, V>)(s, d, slab, first);
}

static void chain_transform(const ChainStep& s, const ChainData& d, int64_t begin, int64_t end) {
  (s.points == 6 ? winograd_transform<3> : winograd_transform<4>)(s, d, begin, end);
}

// Tasks [begin, end) of tiles x slabs.
static void chain_winograd(const ChainStep& s, const ChainData& d, int64_t begin, int64_t end) {
  constexpr decltype(&winograd_tile<1>) kTiles[] = {winograd_tile<1>, winograd_tile<2>, winograd_tile<3>,
                                                    winograd_tile<4>, winograd_tile<5>, winograd_tile<6>,
                                                    winograd_tile<7>};
  const int64_t slabs = (s.planes + kChainWinogradSlab - 1) / kChainWinogradSlab;
  const int64_t parts = (s.columns + s.tile - 1) / s.tile;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t tile = task / slabs, row = tile / parts, part = tile % parts;
    const int64_t column = s.columns * part / parts, next = s.columns * (part + 1) / parts;
    kTiles[next - column - 1](s, d, task % slabs, d.arena + s.x + row * s.x_down + column * s.x_across,
                              row * s.columns + column);
  }
}
