// The sum of two quantized tensors, 16 elements at a time; the numerics of torchaccel/ops/int8_add.py. Memory-bound.
#pragma once

#include "epilogue.inl"

// 16 elements from `at` on, of which n exist, as float(q - zero_point) * scale.
TORCHACCEL_INLINE F32 dequantized(const void* q, Type type, int64_t at, int64_t n, I32 zero_point, F32 scale) {
  const I32 steps = type == Type::kInt8 ? i32_load_s8_n(static_cast<const int8_t*>(q) + at, n)
                                        : i32_load_u8_n(static_cast<const uint8_t*>(q) + at, n);
  return f32_mul(f32_of(i32_sub(steps, zero_point)), scale);
}

// y as the output's type.
TORCHACCEL_INLINE void store_output(const Output& out, int64_t at, F32 y, int64_t n) {
  if (out.type == Type::kFloat32) return f32_store_n(static_cast<float*>(out.data) + at, y, n);
  const I32 steps = to_steps(y, f32_splat(out.inverse_scale), i32_splat(clipped(out.zero_point)));
  if (out.type == Type::kInt8) return i32_store_s8_n(static_cast<int8_t*>(out.data) + at, steps, n);
  i32_store_u8_n(static_cast<uint8_t*>(out.data) + at, steps, n);
}

static void add(const Addition& given, int64_t begin, int64_t end) {
  const Addition d = given;  // a copy: a store of bytes might change what a reference leads to
  const I32 zero_a = i32_splat(d.zero_point_a), zero_b = i32_splat(d.zero_point_b);
  const F32 scale_a = f32_splat(d.scale_a), scale_b = f32_splat(d.scale_b);
  const bool rectified = d.activation == Activation::kRelu || d.activation == Activation::kRelu6;
  const F32 floor = f32_splat(rectified ? 0.0f : -__builtin_inff());
  const bool further = d.activation != Activation::kNone && d.activation != Activation::kRelu;
  for (int64_t at = begin; at < end; at += 16) {
    const int64_t n = end - at < 16 ? end - at : 16;
    F32 y =
        f32_add(dequantized(d.a, d.type_a, at, n, zero_a, scale_a), dequantized(d.b, d.type_b, at, n, zero_b, scale_b));
    y = f32_max(floor, y);  // NaN as the second operand stays NaN
    if (further) y = activate(d.activation, y);
    store_output(d.out, at, y, n);
  }
}
