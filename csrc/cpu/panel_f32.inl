// Fills the panel of a tile of output pixels with float32 activations: rows of kTilePixels floats, one for each (tap,
// channel) of a chunk of K, behind a row of zeros. Of contiguous images, each 16 neighbours of the tile are loaded from
// the rows of pixels that they lie in, under masks, so that nothing outside of the image is read; channels_last ones
// are transposed as in gather.inl.
#pragma once

#include "gather.inl"
#include "unroll.h"

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

// Vectors [begin, end) of output pixels.
static void set_tile(const Input& in, int64_t begin, int64_t end, Tile& tile) {
  tile.row = 16 * begin;
  tile.count = (16 * end < in.rows() ? 16 * end : in.rows()) - tile.row;
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

// Those of 16 neighbours in a tile that lie in one row of pixels: lane i is from[i * stride].
struct Source {
  const float* from;
  uint32_t lanes;  // bit i: lane i
};

struct Sources {
  int n;
  Source source[16];
};

// Where the tile's pixels come from at one tap, from channel `c` on.
static void set_sources(const Input& in, const Tile& tile, int64_t ky, int64_t kx, int64_t c, Sources* sources) {
  const int64_t channels = in.c / 4;
  const float* data = reinterpret_cast<const float*>(in.data);
  for (int64_t v = 0; v < kTilePixels / 16; ++v) sources[v].n = 0;
  for (int r = 0; r < tile.runs; ++r) {
    const PixelRun& run = tile.run[r];
    const int64_t y = run.y * in.stride_h - in.pad_h + ky * in.dilation_h;
    const int64_t x = run.x * in.stride_w - in.pad_w + kx * in.dilation_w;
    if (y < 0 || y >= in.h || x >= in.w) continue;
    // Pixels [low, high) of the run lie in the image.
    const int64_t low = x < 0 ? (-x + in.stride_w - 1) / in.stride_w : 0;
    const int64_t fits = (in.w - x + in.stride_w - 1) / in.stride_w, high = fits < run.count ? fits : run.count;
    const float* first = data + ((run.n * channels + c) * in.h + y) * in.w + x;
    for (int64_t i = low; i < high;) {
      const int64_t at = run.at + i, lane = at % 16, here = 16 - lane < high - i ? 16 - lane : high - i;
      Sources& to = sources[at / 16];
      to.source[to.n++] = {first + (i - lane) * in.stride_w, ((1u << here) - 1) << lane};
      i += here;
    }
  }
}

template <int kStride>  // 1 or 2; 0: any
TORCHACCEL_INLINE F32 load_source(F32 others, const Source& source, int64_t offset, int64_t stride) {
  if (kStride == 1) return f32_merge(others, source.from + offset, source.lanes);
  if (kStride == 2) return f32_merge_even(others, source.from + offset, source.lanes);
  float lanes[16];
  f32_store(lanes, others);
  for (int i = 0; i < 16; ++i) {
    if (source.lanes >> i & 1) lanes[i] = source.from[offset + i * stride];
  }
  return f32_load(lanes);
}

// 16 pixels of each of `channels`, `plane` floats apart.
template <int kStride>
static void copy_channels(const Sources& from, int64_t channels, int64_t plane, int64_t stride, float* to) {
  const F32 zero = f32_splat(0.0f);
  if (from.n == 0) {  // not as a source without lanes: where no memory is, masked loads are slow
    for (int64_t c = 0; c < channels; ++c) f32_store(to + c * kTilePixels, zero);
  } else if (from.n == 1) {
    const Source a = from.source[0];
    for (int64_t c = 0; c < channels; ++c) {
      f32_store(to + c * kTilePixels, load_source<kStride>(zero, a, c * plane, stride));
    }
  } else {
    const Source a = from.source[0], b = from.source[1];
    for (int64_t c = 0; c < channels; ++c) {
      F32 pixels = load_source<kStride>(zero, a, c * plane, stride);
      pixels = load_source<kStride>(pixels, b, c * plane, stride);
      for (int i = 2; i < from.n; ++i) pixels = load_source<kStride>(pixels, from.source[i], c * plane, stride);
      f32_store(to + c * kTilePixels, pixels);
    }
  }
}

// Whole vectors of neighbours: channel by channel, lines that follow each other.
template <int V>
static void copy_vectors(const Sources* from, int64_t vectors, int64_t channels, int64_t plane, float* to) {
  if constexpr (V > 1) {
    if (vectors < V) return copy_vectors<V - 1>(from, vectors, channels, plane, to);
  }
  const float* first[V];
  TORCHACCEL_UNROLL for (int v = 0; v < V; ++v) first[v] = from[v].source[0].from;
  for (int64_t c = 0; c < channels; ++c, to += kTilePixels) {
    TORCHACCEL_UNROLL for (int v = 0; v < V; ++v) f32_store(to + 16 * v, f32_load(first[v] + c * plane));
  }
}

static void fill_contiguous(const Input& in, const Tile& tile, int64_t begin, int64_t end, float* to) {
  const int64_t channels = in.c / 4, plane = in.h * in.w, stride = in.stride_w;
  const int64_t vectors = (tile.count + 15) / 16;
  Sources sources[kTilePixels / 16];
  for (int64_t k = begin; k < end;) {
    const int64_t tap = k / channels, c = k % channels;
    const int64_t taken = channels - c < end - k ? channels - c : end - k;
    set_sources(in, tile, tap / in.kw, tap % in.kw, c, sources);
    bool whole = stride == 1;
    for (int64_t v = 0; v < vectors; ++v) whole = whole && sources[v].n == 1 && sources[v].source[0].lanes == 0xffff;
    if (whole) {
      copy_vectors<kTilePixels / 16>(sources, vectors, taken, plane, to);
    } else {
      const auto copy = stride == 1 ? copy_channels<1> : stride == 2 ? copy_channels<2> : copy_channels<0>;
      for (int64_t v = 0; v < vectors; ++v) copy(sources[v], taken, plane, stride, to + 16 * v);
    }
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
