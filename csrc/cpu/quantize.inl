// float32 to int8 or uint8, one pass over memory per tensor and two over each row (the second from cache).
#pragma once

#include "epilogue.inl"

TORCHACCEL_INLINE void store_steps(void* q, int64_t at, I32 steps, bool is_signed, int64_t n) {
  if (is_signed) {
    i32_store_s8_n(static_cast<int8_t*>(q) + at, steps, n);
  } else {
    i32_store_u8_n(static_cast<uint8_t*>(q) + at, steps, n);
  }
}

static void quantize(const float* x, int64_t count, float inverse, int32_t zero_point, bool is_signed, void* q) {
  const F32 scale = f32_splat(inverse);
  const I32 shift = i32_splat(clipped(zero_point));
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) store_steps(q, i, to_steps(f32_load(x + i), scale, shift), is_signed, 16);
  if (i < count) store_steps(q, i, to_steps(f32_load_n(x + i, count - i), scale, shift), is_signed, count - i);
}

// The least (at most 0) and greatest (at least 0) element, and the greatest magnitude as bits.
struct Range {
  float low, high;
  int32_t magnitude;
};

static Range range_of(const float* x, int64_t k) {
  F32 low = f32_splat(0.0f), high = low;
  I32 magnitude = i32_splat(0);
  int64_t i = 0;
  // In pairs, which halves the chain from one step to the next. What NaN does to low and high does not matter.
  for (; i + 32 <= k; i += 32) {
    const F32 v = f32_load(x + i), w = f32_load(x + i + 16);
    low = f32_min(f32_min(v, w), low);
    high = f32_max(f32_max(v, w), high);
    magnitude = i32_max(i32_max(i32_magnitude(v), i32_magnitude(w)), magnitude);
  }
  for (; i < k; i += 16) {
    const F32 v = f32_load_n(x + i, k - i < 16 ? k - i : 16);
    low = f32_min(v, low);
    high = f32_max(v, high);
    magnitude = i32_max(i32_magnitude(v), magnitude);
  }
  alignas(64) float lows[16], highs[16];
  alignas(64) int32_t magnitudes[16];
  f32_store(lows, low);
  f32_store(highs, high);
  i32_store(magnitudes, magnitude);
  Range out = {0.0f, 0.0f, 0};
  for (int i = 0; i < 16; ++i) {
    out.low = lows[i] < out.low ? lows[i] : out.low;
    out.high = highs[i] > out.high ? highs[i] : out.high;
    out.magnitude = magnitudes[i] > out.magnitude ? magnitudes[i] : out.magnitude;
  }
  return out;
}

// As `quantize` for a row of finite numbers whose own range gave the scale: none is far outside the range of int8.
static void quantize_within(const float* x, int64_t k, float inverse, int32_t zero_point, bool is_signed, void* q) {
  const F32 scale = f32_splat(inverse);
  const I32 shift = i32_splat(zero_point);
  for (int64_t i = 0; i < k; i += 16) {
    const int64_t n = k - i < 16 ? k - i : 16;
    store_steps(q, i, i32_add(i32_round(f32_mul(f32_load_n(x + i, n), scale)), shift), is_signed, n);
  }
}

static void quantize_rows(const float* x, int64_t rows, int64_t k, bool is_signed, void* q, float* scale,
                          int32_t* zero_point) {
  constexpr float kTiny = 1.17549435e-38f;
  constexpr int32_t kInfinity = 0x7f800000;
  for (int64_t row = 0; row < rows; ++row, x += k) {
    const Range range = range_of(x, k);
    int32_t shift = 0;
    float step;
    if (is_signed) {
      memcpy(&step, &range.magnitude, 4);
      step = step / 127.0f;
    } else {
      // Halved before the subtraction: the span of a finite row may exceed the largest float.
      step = (range.high * 0.5f - range.low * 0.5f) / 127.5f;
    }
    step = step < kTiny ? kTiny : step;
    const bool finite = range.magnitude < kInfinity;
    if (!finite) step = __builtin_nanf("");
    const float inverse = 1.0f / step;
    if (!is_signed && finite) {
      int32_t shifts[16];
      const F32 steps = f32_mul(f32_splat(-range.low), f32_splat(inverse));
      i32_store(shifts, i32_round(f32_min(f32_splat(255.0f), steps)));
      shift = shifts[0];
    }
    scale[row] = step;
    zero_point[row] = shift;
    (finite ? quantize_within : quantize)(x, k, inverse, shift, is_signed, static_cast<uint8_t*>(q) + row * k);
  }
}
