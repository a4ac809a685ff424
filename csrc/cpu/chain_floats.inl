// What is float32 outside of a chain, [images, C, H, W] or [images, H, W, C]: into its lanes, as it is or quantized,
// and back; see chain.h.
//
// A tile is up to 16 neighbours, columns of a channel or channels of a pixel, of 16 blocks, and is transposed: 4
// shuffles a vector. So a cache line of the tensor is moved at once, even where its pixels lie 2^n apart. What a tile
// reads besides is in the tensor too, and goes to lanes and pixels that do not exist.
#pragma once

#include "chain_moves.inl"

// The tensor outside, in floats, as the 16 blocks of a vector see it.
struct ChainFloats {
  int64_t planes, columns;              // of a tile: up to 16 of one, and one of the other
  int64_t channel, row, column, count;  // from one to the next; all there are
  int64_t h, w;
  int64_t lanes, last;                        // that exist, and how far the first pixel of any is at most
  int64_t at[16], row_of[16], column_of[16];  // of a lane's first pixel; those that do not exist repeat the first one

  ChainFloats(const ChainStep& s, const ChainGrid& grid, const ChainData& d) : h(s.h), w(s.w), last(0) {
    planes = d.nhwc ? 16 : 1, columns = d.nhwc ? 1 : 16;
    column = d.nhwc ? s.channels : 1;
    row = w * column;
    channel = d.nhwc ? 1 : h * row;
    const int64_t image = s.channels * h * w, blocks = grid.grid_h * grid.grid_w;
    count = d.images * image;
    lanes = d.images * blocks;
    for (int64_t i = 0; i < 16; ++i) {
      const int64_t lane = i < lanes ? i : 0;
      row_of[i] = lane % blocks / grid.grid_w * grid.block_h;
      column_of[i] = lane % grid.grid_w * grid.block_w;
      at[i] = lane / blocks * image + row_of[i] * row + column_of[i] * column;
      last = at[i] > last ? at[i] : last;
    }
  }
};

// y[k * stride ...] = the k-th floats from `at` on, k < wide. A function, so that registers hold the tile alone.
static __attribute__((noinline)) void chain_gather(const float* from, const int64_t* at, int64_t wide, uint8_t* y,
                                                   int64_t stride) {
  const uint8_t* lanes[16];
  for (int64_t i = 0; i < 16; ++i) lanes[i] = reinterpret_cast<const uint8_t*>(from + at[i]);
  transpose16(lanes, static_cast<int>(wide), 0, y, stride);
}

// The same of all lanes, from `from` on; nothing behind the tensor is read.
TORCHACCEL_INLINE void chain_tile(const ChainFloats& x, const void* in, int64_t from, int64_t wide, uint8_t* y,
                                  int64_t stride) {
  const float* floats = static_cast<const float*>(in) + from;
  if (from + x.last + wide <= x.count) return chain_gather(floats, x.at, wide, y, stride);
  float held[16 * 16];
  int64_t at[16];
  for (int64_t i = 0; i < 16; ++i) {
    at[i] = 16 * i;
    for (int64_t k = 0; k < wide; ++k) held[16 * i + k] = from + x.at[i] + k < x.count ? floats[x.at[i] + k] : 0;
  }
  chain_gather(held, at, wide, y, stride);
}

// Whether a vector is a row of the tensor outside: what layers without neighbours are given.
TORCHACCEL_INLINE bool chain_is_row(const ChainStep& s, const ChainGrid& grid, const ChainData& d) {
  return !d.nhwc && grid.grid_w == 16 && grid.block_w == 1 && s.w == 16;
}

// Planes [begin, end) of floats.
static void chain_load_floats(const ChainStep& s, const ChainData& d, int64_t begin, int64_t end) {
  if (chain_is_row(s, s.y_grid, d)) {
    for (int64_t plane = begin; plane < end; ++plane) {
      const float* in = static_cast<const float*>(d.in) + plane * s.h * 16;
      uint8_t* y = d.arena + s.y + plane * s.y_plane;
      for (int64_t row = 0; row < s.h; ++row) memcpy(y + row * s.y_pitch, in + 16 * row, 64);
    }
    return;
  }
  const ChainFloats x(s, s.y_grid, d);
  const int64_t across = s.y_grid.block_w;
  for (int64_t plane = begin; plane < end; plane += x.planes) {
    for (int64_t row = 0; row < s.y_grid.block_h && row < s.h; ++row) {
      for (int64_t column = 0; column < across && column < s.w; column += x.columns) {
        const int64_t left = d.nhwc ? end - plane : across - column;
        chain_tile(x, d.in, plane * x.channel + row * x.row + column * x.column, left < 16 ? left : 16,
                   d.arena + s.y + plane * s.y_plane + row * s.y_pitch + 64 * column, d.nhwc ? s.y_plane : 64);
      }
    }
  }
}

// Planes [begin, end) of what becomes bytes.
static void chain_load_quantized(const ChainStep& s, const ChainData& d, int64_t begin, int64_t end) {
  const ChainFloats x(s, s.y_grid, d);
  const float* floats = d.floats + s.floats;
  const F32 inverse = f32_splat(floats[0]), low = f32_splat(floats[1]), high = f32_splat(floats[2]);
  const I32 zero = i32_splat(static_cast<int32_t>(s.zero_point * 0x01010101));
  const int64_t across = s.y_grid.block_w, planes = d.nhwc ? 4 : 1;
  alignas(64) float tile[4 * 16][16];  // [channel of a plane][column], or [channel]
  for (int64_t plane = begin; plane < end; plane += planes) {
    const int64_t channels = s.channels - 4 * plane, some = end - plane < planes ? end - plane : planes;
    for (int64_t row = 0; row < s.y_grid.block_h && row < s.h; ++row) {
      for (int64_t column = 0; column < across && column < s.w; column += x.columns) {
        const int64_t from = 4 * plane * x.channel + row * x.row + column * x.column;
        const int64_t left = d.nhwc ? channels : across - column, wide = left < 16 ? left : 16;
        for (int64_t c = 0; c < (d.nhwc ? 1 : 4) && c < channels; ++c) {
          chain_tile(x, d.in, from + c * x.channel, wide, reinterpret_cast<uint8_t*>(tile[16 * c]), 64);
        }
        const int64_t vectors = d.nhwc ? some : wide;
        uint8_t* y = d.arena + s.y + plane * s.y_plane + row * s.y_pitch + 64 * column;
        for (int64_t k = 0; k < vectors; ++k, y += d.nhwc ? s.y_plane : 64) {
          const int64_t first = d.nhwc ? 4 * k : k, next = d.nhwc ? 1 : 16, have = d.nhwc ? channels - 4 * k : channels;
          I32 packed = i32_splat(0);  // which is the zero point, of channels that do not exist too
          for (int64_t c = have < 4 ? have - 1 : 3; c >= 0; --c) {
            const F32 steps = f32_zero_if_nan(f32_mul(f32_load(tile[first + c * next]), inverse));
            packed = i32_add(i32_shl8(packed), i32_round(f32_min(high, f32_max(low, steps))));
          }
          i32_store(reinterpret_cast<int32_t*>(y), i32_add(packed, zero));
        }
      }
    }
  }
}

// Lane i of `wide` vectors to `at[i]`, counts[i] floats.
static __attribute__((noinline)) void chain_scatter(const uint8_t* x, int64_t stride, int64_t wide, float* to,
                                                    const int64_t* at, const int64_t* counts) {
  const uint8_t* vectors[16];
  for (int64_t k = 0; k < 16; ++k) vectors[k] = x + (k < wide ? k : 0) * stride;
  scatter16(vectors, wide, to, at, counts);
}

// Planes [begin, end) to the tensor outside.
static void chain_store_floats(const ChainStep& s, const ChainData& d, int64_t begin, int64_t end) {
  if (chain_is_row(s, s.x_grid, d)) {
    for (int64_t plane = begin; plane < end; ++plane) {
      float* out = static_cast<float*>(d.out) + plane * s.h * 16;
      const uint8_t* x = d.arena + s.x + plane * s.x_plane;
      for (int64_t row = 0; row < s.h; ++row) memcpy(out + 16 * row, x + row * s.x_pitch, 64);
    }
    return;
  }
  const ChainFloats y(s, s.x_grid, d);
  const int64_t across = s.x_grid.block_w;
  for (int64_t plane = begin; plane < end; plane += y.planes) {
    for (int64_t row = 0; row < s.x_grid.block_h && row < s.h; ++row) {
      for (int64_t column = 0; column < across && column < s.w; column += y.columns) {
        const int64_t left = d.nhwc ? end - plane : across - column, wide = left < 16 ? left : 16;
        int64_t counts[16];
        for (int64_t i = 0; i < 16; ++i) {
          const int64_t pixels = i < y.lanes && y.row_of[i] + row < y.h ? y.w - y.column_of[i] - column : 0;
          counts[i] = pixels <= 0 ? 0 : d.nhwc || pixels > wide ? wide : pixels;
        }
        chain_scatter(d.arena + s.x + plane * s.x_plane + row * s.x_pitch + 64 * column, d.nhwc ? s.x_plane : 64, wide,
                      static_cast<float*>(d.out) + plane * y.channel + row * y.row + column * y.column, y.at, counts);
      }
    }
  }
}
