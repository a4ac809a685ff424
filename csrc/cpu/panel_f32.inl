// Fills the panel of a tile of output pixels with float32 activations: rows of kTilePixels floats, one for each (tap,
// channel) of a chunk of K, behind a row of zeros. Contiguous images are copied 16 pixels of a row at a time, each copy
// running over into the place of the next; channels_last ones are transposed as in gather.inl.
#pragma once

#include "gather.inl"

// Neighbouring output pixels of one row of one image.
struct PixelRun {
  int64_t n, y, x;
  int32_t count, at;  // pixels, and the first one's place in the tile
};

struct Tile {
  int64_t row, count;  // output pixels [row, row + count) of n * oh * ow
  int runs;
  PixelRun run[kTilePixels];
};

static void set_tile(const Input& in, int64_t index, Tile& tile) {
  tile.row = index * kTilePixels;
  tile.count = in.rows() - tile.row < kTilePixels ? in.rows() - tile.row : kTilePixels;
  tile.runs = 0;
  Cursor at = {tile.row / (in.oh * in.ow), tile.row / in.ow % in.oh, tile.row % in.ow};
  for (int64_t done = 0; done < tile.count;) {
    const int64_t left = tile.count - done, count = in.ow - at.x < left ? in.ow - at.x : left;
    tile.run[tile.runs++] = {at.n, at.y, at.x, static_cast<int32_t>(count), static_cast<int32_t>(done)};
    done += count;
    at.x = 0;
    if (++at.y == in.oh) at.y = 0, ++at.n;
  }
}

// Up to 16 pixels to copy: from `from`, `step` floats further for each channel, to the place `at`.
struct Piece {
  const float* from;  // nullptr: zeros
  int64_t step;
  int32_t at, count;
};

// A run has a piece of padding on either side, and one for each 16 pixels begun.
constexpr int kMostPieces = 3 * kTilePixels + 6;

TORCHACCEL_INLINE int add_pieces(Piece* pieces, int n, const float* from, int64_t stride, int64_t step, int64_t at,
                                 int64_t count) {
  for (int64_t i = 0; i < count; i += 16) {
    const int64_t here = count - i < 16 ? count - i : 16;
    pieces[n++] = {from == nullptr ? nullptr : from + i * stride, step, static_cast<int32_t>(at + i),
                   static_cast<int32_t>(here)};
  }
  return n;
}

// The pieces of one tap, of the channel `c` on.
static int tap_pieces(const Input& in, const Tile& tile, int64_t ky, int64_t kx, int64_t c, Piece* pieces) {
  const int64_t plane = in.h * in.w, channels = in.c / 4;
  const float* data = reinterpret_cast<const float*>(in.data);
  int n = 0;
  for (int r = 0; r < tile.runs; ++r) {
    const PixelRun& run = tile.run[r];
    const int64_t y = run.y * in.stride_h - in.pad_h + ky * in.dilation_h;
    const int64_t x = run.x * in.stride_w - in.pad_w + kx * in.dilation_w;
    // Pixels [low, high) of the run lie in the image.
    int64_t low = x < 0 ? (-x + in.stride_w - 1) / in.stride_w : 0;
    int64_t high = x < in.w ? (in.w - x + in.stride_w - 1) / in.stride_w : 0;
    if (y < 0 || y >= in.h) high = 0;
    high = high < run.count ? high : run.count;
    low = low < high ? low : high;
    n = add_pieces(pieces, n, nullptr, 0, 0, run.at, low);
    if (low < high) {
      const float* from = data + ((run.n * channels + c) * in.h + y) * in.w + x + low * in.stride_w;
      n = add_pieces(pieces, n, from, in.stride_w, plane, run.at + low, high - low);
    }
    n = add_pieces(pieces, n, nullptr, 0, 0, run.at + high, run.count - high);
  }
  return n;
}

// For how many of `channels` all pieces may read `extent` floats without leaving the image.
static int64_t readable_channels(const Input& in, const Piece* pieces, int n, int64_t channels, int64_t extent) {
  const float* end = reinterpret_cast<const float*>(in.data) + in.n * in.h * in.w * (in.c / 4);
  for (int i = 0; i < n && channels > 0; ++i) {
    if (pieces[i].from == nullptr) continue;
    const int64_t room = end - pieces[i].from - extent;
    const int64_t fits = room < 0 ? 0 : room / pieces[i].step + 1;
    channels = fits < channels ? fits : channels;
  }
  return channels;
}

// 16 pixels of each of `channels`, piece by piece, so that nothing but two pointers moves.
template <int kStride>
static void copy_pieces(const Piece* pieces, int n, int64_t channels, float* to) {
  for (int i = 0; i < n; ++i) {
    const Piece& piece = pieces[i];
    const float* from = piece.from;
    const int64_t step = piece.step, room = kTilePixels - piece.at;
    float* at = to + piece.at;
    if (from == nullptr) {
      for (int64_t c = 0; c < channels; ++c, at += kTilePixels) f32_store_n(at, f32_splat(0.0f), room < 16 ? room : 16);
    } else if (room < 16) {  // no place of the tile is left to run over into
      for (int64_t c = 0; c < channels; ++c, at += kTilePixels, from += step) {
        f32_store_n(at, kStride == 1 ? f32_load(from) : f32_load_even(from), room);
      }
    } else {
      for (int64_t c = 0; c < channels; ++c, at += kTilePixels, from += step) {
        f32_store(at, kStride == 1 ? f32_load(from) : f32_load_even(from));
      }
    }
  }
}

// The same pixel by pixel: reads nothing that is not used.
static void copy_pixels(const Piece* pieces, int n, int64_t first, int64_t channels, int64_t stride, float* to) {
  for (int i = 0; i < n; ++i) {
    const Piece& piece = pieces[i];
    for (int64_t c = 0; c < channels; ++c) {
      float* at = to + c * kTilePixels + piece.at;
      for (int32_t p = 0; p < piece.count; ++p) {
        at[p] = piece.from == nullptr ? 0.0f : piece.from[(first + c) * piece.step + p * stride];
      }
    }
  }
}

static void fill_contiguous(const Input& in, const Tile& tile, int64_t begin, int64_t end, float* to) {
  const int64_t channels = in.c / 4, stride = in.stride_w;
  Piece pieces[kMostPieces];
  for (int64_t k = begin; k < end;) {
    const int64_t tap = k / channels, c = k % channels;
    const int64_t taken = channels - c < end - k ? channels - c : end - k;
    const int n = tap_pieces(in, tile, tap / in.kw, tap % in.kw, c, pieces);
    const int64_t fast = stride > 2 ? 0 : readable_channels(in, pieces, n, taken, 16 * stride);
    (stride == 1 ? copy_pieces<1> : copy_pieces<2>)(pieces, n, fast, to);
    copy_pixels(pieces, n, fast, taken - fast, stride, to + fast * kTilePixels);
    to += taken * kTilePixels;
    k += taken;
  }
}

static void fill_channels_last(const Input& in, const Tile& tile, int64_t begin, int64_t end, float* to,
                               uint8_t* padding) {
  Cursor at = {tile.row / (in.oh * in.ow), tile.row / in.ow % in.oh, tile.row % in.ow};
  for (int64_t first = 0; first < tile.count; first += 16) {
    const Pixels pixels = next_pixels(in, 0, at, tile.count - first, padding);
    gather16_aligned(in, pixels, begin, end, reinterpret_cast<uint8_t*>(to + first), kPanelStride);
  }
}

// Rows [begin, end) of K; `padding` has room for 16 * 64 bytes.
static void fill_panel(const ImageF32& image, const Tile& tile, int64_t begin, int64_t end, float* panel,
                       uint8_t* padding) {
  memset(panel, 0, static_cast<size_t>(kPanelStride));
  if (image.channels_last) {
    fill_channels_last(image.in, tile, begin, end, panel + kTilePixels, padding);
  } else {
    fill_contiguous(image.in, tile, begin, end, panel + kTilePixels);
  }
}
