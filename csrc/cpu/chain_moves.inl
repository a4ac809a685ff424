// What an int8 chain does besides convolutions: into its layout and out of it, phases, and pooling; see chain.h.
#pragma once

#include "pool.inl"

// `count` places from pixel x of a row on, every stride_w-th of which goes to one phase.
template <int64_t kStride, bool kAlone>
TORCHACCEL_INLINE void chain_scatter(const ChainStep& s, uint8_t* row, int64_t x, const uint32_t* __restrict places,
                                     int64_t count, int64_t lane) {
  const int64_t stride = kStride > 0 ? kStride : s.stride_w;
  const int64_t across = x + s.pad_w, first = across / stride, phase = across % stride;
  for (int64_t p = 0; p < s.phases_w; ++p) {
    // The place at across + i has phase p.
    const int64_t skip = p >= phase ? p - phase : p - phase + stride;
    const int64_t lanes = kAlone ? 1 : s.y_lanes;
    uint32_t* __restrict to = reinterpret_cast<uint32_t*>(row + p * s.phase) + (first + (p < phase)) * lanes + lane;
    const int64_t n = (count - skip + stride - 1) / stride;
    for (int64_t i = 0; i < n; ++i) to[i * lanes] = places[skip + i * stride];
  }
}

// `count` places from pixel (row, x) on, into a plane of y that is split into phases.
TORCHACCEL_INLINE void chain_scatter(const ChainStep& s, uint8_t* plane, int64_t row, int64_t x, const uint32_t* places,
                                     int64_t count, int64_t lane) {
  const int64_t down = row + s.pad_h, phase = down % s.stride_h;
  if (phase >= s.phases_h) return;
  uint8_t* to = plane + s.y_lead + phase * s.phases_w * s.phase + down / s.stride_h * s.y_pitch;
  if (s.y_lanes > 1) {
    chain_scatter<0, false>(s, to, x, places, count, lane);
  } else if (s.stride_w == 1) {
    chain_scatter<1, true>(s, to, x, places, count, 0);
  } else if (s.stride_w == 2) {
    chain_scatter<2, true>(s, to, x, places, count, 0);
  } else {
    chain_scatter<0, true>(s, to, x, places, count, 0);
  }
}

// The zero point over one plane, before pixels are scattered into it; those of the first image where several share it.
TORCHACCEL_INLINE void chain_clear(const ChainStep& s, const ChainData& d, uint8_t* plane) {
  if (d.lane == 0 || s.y_lanes == 1) memset(plane, static_cast<int>(s.zero_point), static_cast<size_t>(s.y_plane));
}

// Four channels of 16 pixels of float32 [C, H, W], quantized; channels that do not exist are the zero point.
static void chain_quantize(const ChainStep& s, const ChainData& d, int64_t plane, int64_t row, int64_t x, int64_t count,
                           uint32_t* places) {
  const float* floats = d.floats + s.floats;
  const F32 inverse = f32_splat(floats[0]), low = f32_splat(floats[1]), high = f32_splat(floats[2]);
  I32 packed = i32_splat(0);
  for (int64_t c = 3; c >= 0; --c) {
    packed = i32_shl8(packed);
    const int64_t channel = 4 * plane + c;
    if (channel >= s.channels) continue;
    const float* from = static_cast<const float*>(d.in) + (channel * s.h + row) * s.w + x;
    const F32 steps = f32_zero_if_nan(f32_mul(f32_load_n(from, count), inverse));
    packed = i32_add(packed, i32_round(f32_min(high, f32_max(low, steps))));
  }
  const I32 zero = i32_splat(static_cast<int32_t>(s.zero_point * 0x01010101));
  i32_store(reinterpret_cast<int32_t*>(places), i32_add(packed, zero));
}

// Planes [begin, end) of the tensor outside, into the arena.
static void chain_load(const ChainStep& s, const ChainData& d, int64_t begin, int64_t end) {
  constexpr int64_t kPixels = 128;       // at once, where they come as floats
  alignas(64) uint32_t places[16 * 16];  // [plane][pixel]
  const int64_t wide = d.in_float ? 1 : 16, step = d.in_float ? kPixels : 16;
  for (int64_t plane = begin; plane < end; plane += wide) {
    const int64_t n = end - plane < wide ? end - plane : wide;
    uint8_t* y = d.arena + s.y + plane * s.y_plane;
    for (int64_t i = 0; i < n; ++i) chain_clear(s, d, y + i * s.y_plane);
    for (int64_t row = 0; row < s.h; ++row) {
      for (int64_t x = 0; x < s.w; x += step) {
        const int64_t count = s.w - x < step ? s.w - x : step;
        if (d.in_float) {
          for (int64_t i = 0; i < count; i += 16) {
            chain_quantize(s, d, plane, row, x + i, count - i < 16 ? count - i : 16, places + i);
          }
        } else {
          const uint8_t* pixels[16];
          for (int64_t i = 0; i < 16; ++i) {  // pixels that do not exist repeat the last one
            const int64_t at = row * s.w + x + (i < count ? i : count - 1);
            pixels[i] = static_cast<const uint8_t*>(d.in) + at * s.channels + 4 * plane;
          }
          transpose16(pixels, static_cast<int>(n), s.flip != 0 ? 0x80808080 : 0, reinterpret_cast<uint8_t*>(places),
                      64);
        }
        for (int64_t i = 0; i < n; ++i) chain_scatter(s, y + i * s.y_plane, row, x, places + 16 * i, count, d.lane);
      }
    }
  }
}

// Planes [begin, end), from one layout in the arena to one with phases.
static void chain_split(const ChainStep& s, const ChainData& d, int64_t begin, int64_t end) {
  for (int64_t plane = begin; plane < end; ++plane) {
    uint8_t* y = d.arena + s.y + plane * s.y_plane;
    chain_clear(s, d, y);
    for (int64_t row = 0; row < s.h; ++row) {
      const uint32_t* x =
          reinterpret_cast<const uint32_t*>(d.arena + s.x + plane * s.x_plane + row * s.x_pitch) + d.lane % s.x_lanes;
      if (s.x_lanes == 1) {
        chain_scatter(s, y, row, 0, x, s.w, d.lane);
        continue;
      }
      uint32_t places[16];
      for (int64_t i = 0; i < s.w; i += 16) {
        const int64_t count = s.w - i < 16 ? s.w - i : 16;
        for (int64_t j = 0; j < count; ++j) places[j] = x[(i + j) * s.x_lanes];
        chain_scatter(s, y, row, i, places, count, d.lane);
      }
    }
  }
}

// Max-pooling by the offsets of a window's taps, as a convolution reads them; tasks [begin, end) of planes.
static void chain_max_pool(const ChainStep& s, const ChainData& d, int64_t begin, int64_t end) {
  typedef uint8_t Places __attribute__((vector_size(64)));
  const int32_t *offsets = d.indices + s.offsets, *masks = d.indices + s.masks;
  for (int64_t plane = begin; plane < end; ++plane) {
    const uint8_t* x = d.arena + s.x + plane * s.x_plane;
    uint8_t* y = d.arena + s.y + plane * s.y_plane;
    chain_surround(s, y, true, true);
    for (int64_t v = 0; v < s.vectors; ++v) {
      Places best = {};
      for (int64_t i = 0; i < s.blocks; ++i) {
        Places here;
        memcpy(&here, x + 64 * v + offsets[i], 64);
        best = here > best ? here : best;
      }
      alignas(64) int32_t words[16];
      memcpy(words, &best, 64);
      const I32 zero = i32_splat(static_cast<int32_t>(s.zero_point * 0x01010101));
      i32_store(reinterpret_cast<int32_t*>(y + 64 * v), i32_select(masks[v], i32_load(words), zero));
    }
  }
}

// The average of whole planes [begin, end), to the tensor outside.
static void chain_average(const ChainStep& s, const ChainData& d, int64_t begin, int64_t end) {
  const float* floats = d.floats + s.floats;
  for (int64_t plane = begin; plane < end; ++plane) {
    const uint8_t* x = d.arena + s.x + plane * s.x_plane + 4 * (d.lane % s.x_lanes);
    int32_t sums[4] = {};
    for (int64_t row = 0; row < s.h; ++row, x += s.x_pitch) {
      for (int64_t i = 0; i < s.w; ++i) {
        for (int c = 0; c < 4; ++c) sums[c] += x[4 * i * s.x_lanes + c];
      }
    }
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

// Rows [begin, end) to the tensor outside, bytes [H, W, C].
static void chain_store_rows(const ChainStep& s, const ChainData& d, int64_t begin, int64_t end) {
  alignas(64) uint8_t pixels[16 * 64];
  alignas(64) uint32_t places[16 * 16];  // [plane][pixel]
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t x = 0; x < s.w; x += 16) {
      const int64_t count = s.w - x < 16 ? s.w - x : 16;
      for (int64_t plane = 0; plane < s.planes; plane += 16) {
        const int64_t planes = s.planes - plane < 16 ? s.planes - plane : 16;
        const uint8_t* from[16];
        for (int64_t i = 0; i < 16; ++i) {
          const int64_t place = x * s.x_lanes + d.lane % s.x_lanes;
          from[i] = d.arena + s.x + (plane + (i < planes ? i : 0)) * s.x_plane + row * s.x_pitch + 4 * place;
          if (s.x_lanes == 1) continue;
          for (int64_t j = 0; j < count; ++j) memcpy(&places[16 * i + j], from[i] + 4 * j * s.x_lanes, 4);
          from[i] = reinterpret_cast<const uint8_t*>(places + 16 * i);
        }
        transpose16(from, static_cast<int>(count), s.flip != 0 ? 0x80808080 : 0, pixels, 64);
        const int64_t left = s.channels - 4 * plane, bytes = left < 64 ? left : 64;
        uint8_t* to = static_cast<uint8_t*>(d.out) + (row * s.w + x) * s.channels + 4 * plane;
        for (int64_t i = 0; i < count; ++i) memcpy(to + i * s.channels, pixels + 64 * i, static_cast<size_t>(bytes));
      }
    }
  }
}

static void chain(const ChainStep& s, const ChainData& d, int64_t begin, int64_t end) {
  switch (static_cast<ChainKind>(s.kind)) {
    case ChainKind::kLoad:
      return chain_load(s, d, begin, end);
    case ChainKind::kSplit:
      return chain_split(s, d, begin, end);
    case ChainKind::kConv:
      return chain_conv(s, d, begin, end);
    case ChainKind::kMaxPool:
      return chain_max_pool(s, d, begin, end);
    case ChainKind::kAverage:
      return chain_average(s, d, begin, end);
    case ChainKind::kStore:
      return chain_store_rows(s, d, begin, end);
  }
}
