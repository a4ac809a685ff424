// The moves of a chain: bytes into its layout, from one cut into lanes to another, halos, and bytes out of it; see
// chain.h, and chain_floats.inl for what is float32 outside.
//
// Places are moved as words of 4 bytes, a row of pixels at a time, but for a halo's, which are vectors.
#pragma once

#include "tails.inl"

constexpr int64_t kChainPixels = 128;  // of a row that are moved at once

// Where pixels along one axis of an image lie, in bytes: a step from each to the next of its block, and from each block
// to the next.
struct ChainAxis {
  int64_t block, step, across;
  int64_t at = 0, inside = 0;

  void advance(int64_t pixels) {
    at += pixels * step;
    for (inside += pixels; inside >= block; inside -= block) at += across - block * step;
  }
};

// Rows of an image, from the first pixel of the first block.
TORCHACCEL_INLINE ChainAxis chain_rows(const ChainGrid& grid, int64_t pitch, int64_t image) {
  return {grid.block_h, pitch, 4 * grid.grid_w, 4 * (image % grid.images * grid.grid_h * grid.grid_w)};
}

// Up to kChainPixels of a row of `width` pixels, every stride-th, from the `first` on; from where the row begins.
struct ChainColumns {
  int64_t count;
  int32_t at[kChainPixels];

  ChainColumns(const ChainGrid& grid, int64_t first, int64_t width, int64_t stride = 1) {
    count = width - first < kChainPixels ? width - first : kChainPixels;
    ChainAxis axis = {grid.block_w, 64, 4};
    axis.advance(first * stride);
    for (int64_t i = 0; i < count; ++i, axis.advance(stride)) at[i] = static_cast<int32_t>(axis.at);
  }
};

// `count` words to where they lie in a row.
TORCHACCEL_INLINE void chain_spread(uint8_t* row, const int32_t* at, const void* words, int64_t count) {
  for (int64_t i = 0; i < count; ++i) memcpy(row + at[i], static_cast<const uint8_t*>(words) + 4 * i, 4);
}

TORCHACCEL_INLINE void chain_collect(const uint8_t* row, const int32_t* at, void* words, int64_t count) {
  for (int64_t i = 0; i < count; ++i) memcpy(static_cast<uint8_t*>(words) + 4 * i, row + at[i], 4);
}

// Up to 16 pixels of bytes [H, W, C]: places [planes][16], planes up to 16.
TORCHACCEL_INLINE void chain_transpose(const ChainStep& s, const ChainData& d, int64_t plane, int64_t planes,
                                       int64_t pixel, int64_t count, uint32_t* places) {
  const uint8_t* pixels[16];
  for (int64_t i = 0; i < 16; ++i) {  // those that do not exist repeat the last one
    const int64_t at = pixel + (i < count ? i : count - 1);
    pixels[i] = static_cast<const uint8_t*>(d.in) + at * s.channels + 4 * plane;
  }
  const uint32_t flip = s.flip != 0 ? 0x80808080 : 0;
  transpose16(pixels, static_cast<int>(planes), flip, reinterpret_cast<uint8_t*>(places), 64);
}

// Planes [begin, end) of bytes.
static void chain_load_bytes(const ChainStep& s, const ChainData& d, int64_t begin, int64_t end) {
  alignas(64) uint32_t places[16 * 16];  // [plane][pixel]
  for (int64_t first = 0; first < s.w; first += kChainPixels) {
    const ChainColumns columns(s.y_grid, first, s.w);
    for (int64_t plane = begin; plane < end; plane += 16) {
      const int64_t planes = end - plane < 16 ? end - plane : 16;
      ChainAxis rows = chain_rows(s.y_grid, s.y_pitch, d.image);
      for (int64_t row = 0; row < s.h; ++row, rows.advance(1)) {
        uint8_t* y = d.arena + s.y + plane * s.y_plane + rows.at;
        for (int64_t i = 0; i < columns.count; i += 16) {
          const int64_t pixel = row * s.w + first + i, count = columns.count - i < 16 ? columns.count - i : 16;
          chain_transpose(s, d, plane, planes, pixel, count, places);
          for (int64_t p = 0; p < planes; ++p) {
            chain_spread(y + p * s.y_plane, columns.at + i, places + 16 * p, count);
          }
        }
      }
    }
  }
}

// Planes [begin, end), from one grid to another.
static void chain_relane(const ChainStep& s, const ChainData& d, int64_t begin, int64_t end) {
  for (int64_t first = 0; first < s.w; first += kChainPixels) {
    const ChainColumns from(s.x_grid, first, s.w, s.stride_w), to(s.y_grid, first, s.w);
    for (int64_t plane = begin; plane < end; ++plane) {
      const uint8_t* x = d.arena + s.x + plane * s.x_plane;
      uint8_t* y = d.arena + s.y + plane * s.y_plane;
      ChainAxis x_rows = chain_rows(s.x_grid, s.x_pitch, d.image), y_rows = chain_rows(s.y_grid, s.y_pitch, d.image);
      for (int64_t row = 0; row < s.h; ++row, x_rows.advance(s.stride_h), y_rows.advance(1)) {
        for (int64_t i = 0; i < to.count; ++i) memcpy(y + y_rows.at + to.at[i], x + x_rows.at + from.at[i], 4);
      }
    }
  }
}

// What lies around the blocks of planes [begin, end), in place.
static void chain_halo(const ChainStep& s, const ChainData& d, int64_t begin, int64_t end) {
  const int32_t *entries = d.indices + s.offsets, *lanes = d.indices + s.lanes;
  const I32 padding = i32_splat(static_cast<int32_t>(s.padding));
  for (int64_t plane = begin; plane < end; ++plane) {
    uint8_t* y = d.arena + s.y + plane * s.y_plane;
    for (const int32_t* entry = entries; entry < entries + 3 * s.blocks; entry += 3) {
      const I32 from = i32_load(reinterpret_cast<const int32_t*>(y + entry[1]));
      i32_store(reinterpret_cast<int32_t*>(y + entry[0]), i32_permute(from, lanes + 16 * entry[2], padding));
    }
  }
}

// Rows [begin, end) to the tensor outside, bytes [H, W, C].
static void chain_store_bytes(const ChainStep& s, const ChainData& d, int64_t begin, int64_t end) {
  alignas(64) uint8_t pixels[16 * 64];
  alignas(64) uint32_t places[16 * 16];  // [plane][pixel]
  const uint8_t* from[16];
  for (int64_t p = 0; p < 16; ++p) from[p] = reinterpret_cast<const uint8_t*>(places + 16 * p);
  const uint32_t flip = s.flip != 0 ? 0x80808080 : 0;
  for (int64_t first = 0; first < s.w; first += kChainPixels) {
    const ChainColumns columns(s.x_grid, first, s.w);
    ChainAxis rows = chain_rows(s.x_grid, s.x_pitch, d.image);
    rows.advance(begin);
    for (int64_t row = begin; row < end; ++row, rows.advance(1)) {
      const uint8_t* x = d.arena + s.x + rows.at;
      for (int64_t i = 0; i < columns.count; i += 16) {
        const int64_t pixel = row * s.w + first + i, count = columns.count - i < 16 ? columns.count - i : 16;
        for (int64_t plane = 0; plane < s.planes; plane += 16) {
          const int64_t planes = s.planes - plane < 16 ? s.planes - plane : 16;
          for (int64_t p = 0; p < planes; ++p) {
            chain_collect(x + (plane + p) * s.x_plane, columns.at + i, places + 16 * p, count);
          }
          transpose16(from, static_cast<int>(count), flip, pixels, 64);
          const int64_t left = s.channels - 4 * plane, bytes = left < 64 ? left : 64;
          uint8_t* out = static_cast<uint8_t*>(d.out) + pixel * s.channels + 4 * plane;
          for (int64_t j = 0; j < count; ++j) memcpy(out + j * s.channels, pixels + 64 * j, static_cast<size_t>(bytes));
        }
      }
    }
  }
}
