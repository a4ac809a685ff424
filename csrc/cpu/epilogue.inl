// From int32 sums to the output, 16 channels at a time: the numerics of torchaccel/ops/_epilogue.py. Each product and
// sum is rounded apart (-ffp-contract=off, no fused multiply-add here), so every instruction set gives the same bits.
#pragma once

#include "tails.inl"

// e^x by Cephes' reduction (x = n ln2 + r) and polynomial of degree 6, below 2 ulp; NaN stays NaN.
TORCHACCEL_INLINE F32 f32_exp(F32 x) {
  x = f32_min(f32_splat(88.0f), f32_max(f32_splat(-87.0f), x));
  const I32 n = i32_round(f32_mul(x, f32_splat(1.44269504f)));
  const F32 nf = f32_of(n);
  F32 r = f32_sub(x, f32_mul(nf, f32_splat(0.693359375f)));
  r = f32_sub(r, f32_mul(nf, f32_splat(-2.12194440e-4f)));
  F32 p = f32_splat(1.9875691500e-4f);
  p = f32_add(f32_mul(p, r), f32_splat(1.3981999507e-3f));
  p = f32_add(f32_mul(p, r), f32_splat(8.3334519073e-3f));
  p = f32_add(f32_mul(p, r), f32_splat(4.1665795894e-2f));
  p = f32_add(f32_mul(p, r), f32_splat(1.6666665459e-1f));
  p = f32_add(f32_mul(p, r), f32_splat(5.0000001201e-1f));
  p = f32_add(f32_add(f32_mul(f32_mul(p, r), r), r), f32_splat(1.0f));
  return f32_mul(p, f32_exp2(n));
}

TORCHACCEL_INLINE F32 silu(F32 y) { return f32_div(y, f32_add(f32_splat(1.0f), f32_exp(f32_sub(f32_splat(0.0f), y)))); }

// x Phi(x), with the error function of Abramowitz and Stegun 7.1.26 (absolute error 1.5e-7).
TORCHACCEL_INLINE F32 gelu(F32 y) {
  const F32 magnitude = f32_max(f32_sub(f32_splat(0.0f), y), y);
  const F32 z = f32_mul(magnitude, f32_splat(0.707106781f));
  const F32 t = f32_div(f32_splat(1.0f), f32_add(f32_mul(z, f32_splat(0.3275911f)), f32_splat(1.0f)));
  F32 p = f32_splat(1.061405429f);
  p = f32_add(f32_mul(p, t), f32_splat(-1.453152027f));
  p = f32_add(f32_mul(p, t), f32_splat(1.421413741f));
  p = f32_add(f32_mul(p, t), f32_splat(-0.284496736f));
  p = f32_add(f32_mul(p, t), f32_splat(0.254829592f));
  const F32 erfc = f32_mul(f32_mul(p, t), f32_exp(f32_sub(f32_splat(0.0f), f32_mul(z, z))));
  const F32 tail = f32_mul(f32_mul(f32_splat(0.5f), y), erfc);  // y (1 - Phi(|y|))
  return f32_if_negative(y, tail, f32_sub(y, tail));
}

// rint(y * inverse) + zero_point, to be stored with saturation; NaN gives the zero point.
TORCHACCEL_INLINE I32 to_steps(F32 y, F32 inverse, I32 zero_point) {
  const F32 steps = f32_zero_if_nan(f32_mul(y, inverse));
  return i32_add(i32_round(f32_max(f32_splat(-1024.0f), f32_min(f32_splat(1024.0f), steps))), zero_point);
}

// Beyond this a zero point saturates every output; clipping keeps the sum with +-1024 inside int32.
TORCHACCEL_INLINE int32_t clipped(int32_t zero_point) {
  return zero_point < -65536 ? -65536 : zero_point > 65536 ? 65536 : zero_point;
}

template <Type kResidual>
TORCHACCEL_INLINE F32 residual16(const Epilogue& e, int64_t at, int64_t n) {
  if (kResidual == Type::kFloat32) return f32_load_n(static_cast<const float*>(e.residual) + at, n);
  const I32 q = kResidual == Type::kInt8 ? i32_load_s8_n(static_cast<const int8_t*>(e.residual) + at, n)
                                         : i32_load_u8_n(static_cast<const uint8_t*>(e.residual) + at, n);
  return f32_mul(f32_of(i32_sub(q, i32_splat(e.residual_zero_point))), f32_splat(e.residual_scale));
}

TORCHACCEL_INLINE bool is_rectified(Activation activation) {
  return activation == Activation::kRelu || activation == Activation::kRelu6;
}

TORCHACCEL_INLINE bool is_plain(Activation activation) {
  return activation == Activation::kNone || activation == Activation::kRelu;
}

// What is left of an activation after the maximum with its floor.
TORCHACCEL_INLINE F32 activate(Activation activation, F32 y) {
  if (activation == Activation::kRelu6) return f32_min(f32_splat(6.0f), y);
  return activation == Activation::kGelu ? gelu(y) : silu(y);
}

// acc [rows][stride], its 16 columns from `channel` on of which n exist; output rows from `row` on. kPlain: all 16
// exist and the activation is none or ReLU; what the rest needs would fill the registers.
template <Type kOut, Type kResidual, bool kPlain>
static void finish16(const Epilogue& e, const int32_t* acc, int64_t stride, int64_t row, int64_t rows, int64_t channel,
                     int64_t count) {
  const int64_t n = kPlain ? 16 : count;
  const I32 colsum = i32_load_n(e.colsum + channel, n);
  const F32 scale_b = f32_load_n(e.scale_b + channel, n);
  // Adding -0 changes nothing, not even a negative zero.
  const F32 bias = e.bias == nullptr ? f32_splat(-0.0f) : f32_load_n(e.bias + channel, n);
  const F32 floor = f32_splat(is_rectified(e.activation) ? 0.0f : -__builtin_inff());
  const F32 inverse = f32_splat(e.inverse_scale_out);
  const I32 zero_point_out = i32_splat(clipped(e.zero_point_out));
  // Copies: a store of bytes might change what a reference leads to.
  const Activation activation = e.activation;
  const bool further = !kPlain && !is_plain(activation);
  const int64_t channels = e.channels;
  void* const out = e.out;
  const bool single = e.scale_a_step == 0 && e.zero_point_step == 0;
  const int64_t rows_per_scale = single ? rows : e.rows_per_scale;
  const int64_t unit = single ? 0 : rows_per_scale == 1 ? row : row / rows_per_scale;
  const int32_t none = 0;
  const int64_t scale_step = e.scale_a_step, zero_point_step = e.zero_point_step;
  const float* scale_a = e.scale_a + unit * scale_step;
  const int32_t* zero_point = e.zero_point == nullptr ? &none : e.zero_point + unit * zero_point_step;
  const I32 zero_point_shift = i32_splat(e.zero_point_shift);
  int64_t until = single ? rows : (unit + 1) * rows_per_scale - row;
  for (int64_t r = 0; r < rows; until += rows_per_scale, scale_a += scale_step, zero_point += zero_point_step) {
    const I32 shift = i32_mul(i32_add(i32_splat(*zero_point), zero_point_shift), colsum);
    const F32 scale = f32_mul(f32_splat(*scale_a), scale_b);
    for (const int64_t end = until < rows ? until : rows; r < end; ++r) {
      const int64_t at = (row + r) * channels + channel;
      F32 y = f32_add(f32_mul(f32_of(i32_sub(i32_load(acc + r * stride), shift)), scale), bias);
      if (kResidual != Type::kNone) y = f32_add(y, residual16<kResidual>(e, at, n));
      y = f32_max(floor, y);  // NaN as the second operand stays NaN
      if (further) y = activate(activation, y);
      if (kOut == Type::kFloat32) {
        f32_store_n(static_cast<float*>(out) + at, y, n);
      } else if (kOut == Type::kInt8) {
        i32_store_s8_n(static_cast<int8_t*>(out) + at, to_steps(y, inverse, zero_point_out), n);
      } else {
        i32_store_u8_n(static_cast<uint8_t*>(out) + at, to_steps(y, inverse, zero_point_out), n);
      }
    }
  }
}

template <Type kOut, Type kResidual>
static void finish16(const Epilogue& e, const int32_t* acc, int64_t stride, int64_t row, int64_t rows, int64_t channel,
                     int64_t n) {
  if (n == 16 && is_plain(e.activation)) {
    finish16<kOut, kResidual, true>(e, acc, stride, row, rows, channel, n);
  } else {
    finish16<kOut, kResidual, false>(e, acc, stride, row, rows, channel, n);
  }
}

template <Type kOut>
static void finish16(const Epilogue& e, const int32_t* acc, int64_t stride, int64_t row, int64_t rows, int64_t channel,
                     int64_t n) {
  switch (e.residual_type) {
    case Type::kNone:
      return finish16<kOut, Type::kNone>(e, acc, stride, row, rows, channel, n);
    case Type::kFloat32:
      return finish16<kOut, Type::kFloat32>(e, acc, stride, row, rows, channel, n);
    case Type::kInt8:
      return finish16<kOut, Type::kInt8>(e, acc, stride, row, rows, channel, n);
    case Type::kUint8:
      return finish16<kOut, Type::kUint8>(e, acc, stride, row, rows, channel, n);
  }
}

static void finish(const Epilogue& e, const int32_t* acc, int64_t stride, int64_t row, int64_t rows, int64_t channel,
                   int64_t n) {
  for (; n > 0; n -= 16, channel += 16, acc += 16) {
    const int64_t lanes = n < 16 ? n : 16;
    if (e.out_type == Type::kFloat32) {
      finish16<Type::kFloat32>(e, acc, stride, row, rows, channel, lanes);
    } else if (e.out_type == Type::kInt8) {
      finish16<Type::kInt8>(e, acc, stride, row, rows, channel, lanes);
    } else {
      finish16<Type::kUint8>(e, acc, stride, row, rows, channel, lanes);
    }
  }
}
