// Pooling of NHWC activations: each output pixel reads its window once, many channels at a time.
#pragma once

#include "add.inl"

// The rows [y, y_end) and columns [x, x_end) of the input, `dilation` apart, that a window covers.
struct Window {
  int64_t y, y_end, x, x_end;
};

// From the first of `count` places, `step` apart from `start` on, that is at least 0.
TORCHACCEL_INLINE int64_t first_inside(int64_t start, int64_t step) {
  return start >= 0 ? start : start + (-start + step - 1) / step * step;
}

TORCHACCEL_INLINE Window window_at(const Input& in, int64_t oy, int64_t ox) {
  const int64_t y = oy * in.stride_h - in.pad_h, x = ox * in.stride_w - in.pad_w;
  const int64_t y_end = y + (in.kh - 1) * in.dilation_h + 1, x_end = x + (in.kw - 1) * in.dilation_w + 1;
  return {first_inside(y, in.dilation_h), y_end < in.h ? y_end : in.h, first_inside(x, in.dilation_w),
          x_end < in.w ? x_end : in.w};
}

typedef uint8_t Bytes __attribute__((vector_size(kVectorBytes)));
typedef uint8_t Bytes16 __attribute__((vector_size(16)));

// The greatest bytes, unsigned after XOR flip, of the kVectors * sizeof(V) channels from `data` on, stored to `out`.
template <typename V, int kVectors>
TORCHACCEL_INLINE void max_window(const Input& in, const Window& w, const uint8_t* data, uint8_t flip, uint8_t* out) {
  V best[kVectors];
  for (int i = 0; i < kVectors; ++i) best[i] = V{};
  for (int64_t y = w.y; y < w.y_end; y += in.dilation_h) {
    for (int64_t x = w.x; x < w.x_end; x += in.dilation_w) {
      const uint8_t* from = data + (y * in.w + x) * in.c;
      for (int i = 0; i < kVectors; ++i) {
        V v;
        memcpy(&v, from + i * sizeof(V), sizeof(V));
        v ^= flip;
        best[i] = v > best[i] ? v : best[i];
      }
    }
  }
  for (int i = 0; i < kVectors; ++i) {
    best[i] ^= flip;
    memcpy(out + i * sizeof(V), &best[i], sizeof(V));
  }
}

// The last vector of a row overlaps the one before; fewer than 16 channels go one by one.
static void max_pool(const Input& given, bool is_signed, uint8_t* out, int64_t begin, int64_t end) {
  const Input in = given;
  const uint8_t flip = is_signed ? 0x80 : 0;
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    const Window w = window_at(in, pixel / in.ow % in.oh, pixel % in.ow);
    const uint8_t* data = in.data + pixel / (in.oh * in.ow) * in.h * in.w * in.c;
    uint8_t* to = out + pixel * in.c;
    int64_t c = 0;
    for (; c + 2 * kVectorBytes <= in.c; c += 2 * kVectorBytes) max_window<Bytes, 2>(in, w, data + c, flip, to + c);
    for (; c + kVectorBytes <= in.c; c += kVectorBytes) max_window<Bytes, 1>(in, w, data + c, flip, to + c);
    if (kVectorBytes > 16) {
      for (; c + 16 <= in.c; c += 16) max_window<Bytes16, 1>(in, w, data + c, flip, to + c);
    }
    if (c < in.c && in.c >= 16) {
      max_window<Bytes16, 1>(in, w, data + in.c - 16, flip, to + in.c - 16);
      c = in.c;
    }
    for (; c < in.c; ++c) {
      uint8_t best = 0;
      for (int64_t y = w.y; y < w.y_end; y += in.dilation_h) {
        for (int64_t x = w.x; x < w.x_end; x += in.dilation_w) {
          const uint8_t v = data[(y * in.w + x) * in.c + c] ^ flip;
          best = v > best ? v : best;
        }
      }
      to[c] = best ^ flip;
    }
  }
}

// The sums of kVectors * 16 channels from `channel` on, of which n exist (all, unless kVectors is 1), to the output.
template <int kVectors, bool kSigned>
TORCHACCEL_INLINE void average_window(const Input& in, const Average& average, const Window& w, const uint8_t* data,
                                      float factor, int64_t at, int64_t n) {
  const int64_t pixels = (w.y_end - w.y) * (w.x_end - w.x);
  I32 sums[kVectors];
  for (int i = 0; i < kVectors; ++i) sums[i] = i32_splat(0);
  for (int64_t y = w.y; y < w.y_end; ++y) {
    for (int64_t x = w.x; x < w.x_end; ++x) {
      const uint8_t* from = data + (y * in.w + x) * in.c;
      for (int i = 0; i < kVectors; ++i) {
        const uint8_t* p = from + 16 * i;
        sums[i] =
            i32_add(sums[i], kSigned ? i32_load_s8_n(reinterpret_cast<const int8_t*>(p), n) : i32_load_u8_n(p, n));
      }
    }
  }
  // Unsigned, since zero_point * pixels wraps as int32 sums do.
  const uint32_t shift = static_cast<uint32_t>(average.zero_point) * static_cast<uint32_t>(pixels);
  for (int i = 0; i < kVectors; ++i) {
    const F32 y = f32_mul(f32_of(i32_sub(sums[i], i32_splat(static_cast<int32_t>(shift)))), f32_splat(factor));
    store_output(average.out, at + 16 * i, y, n);
  }
}

template <bool kSigned>
static void avg_pool_as(const Input& in, const Average& average, int64_t begin, int64_t end) {
  const int64_t blocks = Average::blocks(in);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t pixel = task / blocks, oy = pixel / in.ow % in.oh, ox = pixel % in.ow;
    const Window w = window_at(in, oy, ox);
    int64_t rows = w.y_end - w.y, columns = w.x_end - w.x;
    if (average.include_padding) {
      const int64_t y = oy * in.stride_h - in.pad_h, x = ox * in.stride_w - in.pad_w;
      rows = (y + in.kh < in.h + in.pad_h ? y + in.kh : in.h + in.pad_h) - y;
      columns = (x + in.kw < in.w + in.pad_w ? x + in.kw : in.w + in.pad_w) - x;
    }
    const float factor = average.scale * (1.0f / static_cast<float>(rows * columns));
    int64_t c = task % blocks * Average::kChannels;
    const uint8_t* data = in.data + pixel / (in.oh * in.ow) * in.h * in.w * in.c;
    if (c + Average::kChannels <= in.c) {
      average_window<4, kSigned>(in, average, w, data + c, factor, pixel * in.c + c, 16);
      continue;
    }
    for (; c < in.c; c += 16) {
      const int64_t n = in.c - c < 16 ? in.c - c : 16;
      average_window<1, kSigned>(in, average, w, data + c, factor, pixel * in.c + c, n);
    }
  }
}

static void avg_pool(const Input& given, const Average& average, int64_t begin, int64_t end) {
  const Input in = given;
  const Average copied = average;  // copies: a store of bytes might change what a reference leads to
  if (copied.is_signed) {
    avg_pool_as<true>(in, copied, begin, end);
  } else {
    avg_pool_as<false>(in, copied, begin, end);
  }
}
