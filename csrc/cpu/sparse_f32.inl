// Weight-sparse float32 convolution: 96 output pixels in lanes, weights broadcast.
//
// The operand of a nonzero comes from a panel in L1 (panel_f32.inl), wherever its column lies (sparse_steps.inl). Four
// output channels are computed together, to overlap the latencies of their loads and sums; channels with as many
// nonzeros share a group, so that loops end where they are predicted to. A deep K is taken in chunks, the sums of up to
// 1024 channels waiting in L2 meanwhile. Bias, residual and activation are applied in registers where the output is
// contiguous; for channels_last the sums are transposed first. Roofline: 7 loads for 6 multiply-adds.
#pragma once

#include "epilogue.inl"
#include "panel_f32.inl"
#include "sparse_steps.inl"

// Residual and activation of sums, where lane 0's place in the output is `at`.
TORCHACCEL_INLINE void finish_f32(const OutputF32& out, int64_t at, F32 y, uint32_t lanes) {
  const bool rectified = out.activation == Activation::kRelu || out.activation == Activation::kRelu6;
  if (out.residual != nullptr) y = f32_add(y, f32_merge(f32_splat(0.0f), out.residual + at, lanes));
  y = f32_max(f32_splat(rectified ? 0.0f : -__builtin_inff()), y);  // NaN as the second operand stays NaN
  if (out.activation != Activation::kNone && out.activation != Activation::kRelu) y = activate(out.activation, y);
  f32_store_lanes(out.data + at, y, lanes);
}

// Those lanes of a vector that lie in one image, and where lane 0 of channel 0 would be in the output.
struct Place {
  int64_t at;
  uint32_t lanes;
};

// Where a tile goes.
struct Places {
  struct Vector {
    int n;
    Place place[16];
  } vector[kTilePixels / 16];
  bool whole;  // vectors of one image, one behind the other
};

static void set_places(const Tile& tile, const OutputF32& out, Places& places) {
  places.whole = tile.count % 16 == 0 && tile.row % out.plane + tile.count <= out.plane;
  for (int64_t i = 0; i < tile.count; i += 16) {
    Places::Vector& to = places.vector[i / 16];
    to.n = 0;
    const int64_t count = tile.count - i < 16 ? tile.count - i : 16;
    for (int64_t lane = 0; lane < count;) {
      const int64_t row = tile.row + i + lane, n = row / out.plane, pixel = row % out.plane;
      const int64_t here = out.plane - pixel < count - lane ? out.plane - pixel : count - lane;
      to.place[to.n++] = {n * out.channels * out.plane + pixel - lane, ((1u << here) - 1) << lane};
      lane += here;
    }
  }
}

// A row of a tile. A function, so that registers hold the sums of other rows.
static __attribute__((noinline)) void finish_row(const OutputF32& out, const Places& places, int vectors,
                                                 int64_t channel, const float* sums) {
  for (int v = 0; v < vectors; ++v) {
    for (int i = 0; i < places.vector[v].n; ++i) {
      const Place& to = places.vector[v].place[i];
      finish_f32(out, to.at + channel * out.plane, f32_load(sums + 16 * v), to.lanes);
    }
  }
}

// What the groups of one tile and chunk have in common.
struct ChunkF32 {
  const float* panel;
  float* sums;  // of the slab, [kSlabRows][kTilePixels]
  const float* bias;
  bool begins, ends;  // the first chunk takes the bias, the last one stores the output
  const Places* places;
};

// The same in registers, of sums with nothing but a residual and a rectifier.
template <int kVectors>
TORCHACCEL_INLINE void finish_sums(const OutputF32& out, const Places& places, int64_t channel, F32 floor,
                                   const F32 (&sums)[kVectors]) {
  TORCHACCEL_UNROLL for (int v = 0; v < kVectors; ++v) {
    for (int i = 0; i < places.vector[v].n; ++i) {
      const uint32_t lanes = places.vector[v].place[i].lanes;
      const int64_t at = places.vector[v].place[i].at + channel * out.plane;
      F32 y = sums[v];
      if (out.residual != nullptr) y = f32_add(y, f32_merge(f32_splat(0.0f), out.residual + at, lanes));
      f32_store_lanes(out.data + at, f32_max(floor, y), lanes);
    }
  }
}

// The same of whole vectors that follow each other.
template <int kVectors>
TORCHACCEL_INLINE void finish_whole(const float* residual, F32 floor, const F32 (&sums)[kVectors], float* to,
                                    bool streams) {
  TORCHACCEL_UNROLL for (int v = 0; v < kVectors; ++v) {
    const F32 y = f32_max(floor, residual == nullptr ? sums[v] : f32_add(sums[v], f32_load(residual + 16 * v)));
    streams ? f32_stream(to + 16 * v, y) : f32_store(to + 16 * v, y);
  }
}

template <int kVectors, bool kShared>
static void multiply_slab(const SparseF32& given, const OutputF32& where, const ChunkF32& of, int64_t slab,
                          int64_t list) {
  const SparseF32 weights = given;
  const OutputF32 out = where;
  const ChunkF32 chunk = of;  // copies: a store of floats might change what a reference leads to
  const bool ends = chunk.ends && !out.channels_last;
  const bool direct = ends && (out.activation == Activation::kNone || out.activation == Activation::kRelu);
  const int64_t first = chunk.places->vector[0].place[0].at;
  const bool whole = direct && chunk.places->whole;
  const bool streams = out.streams && out.plane % 16 == 0 && reinterpret_cast<uintptr_t>(out.data) % 64 == 0;
  const F32 floor = f32_splat(out.activation == Activation::kRelu ? 0.0f : -__builtin_inff());
  const int32_t* group = weights.group + 3 * weights.first[list];
  const uint8_t* panel = reinterpret_cast<const uint8_t*>(chunk.panel);
  alignas(64) float row_sums[kTilePixels];
  for (const int32_t* last = weights.group + 3 * weights.first[list + 1]; group < last; group += 3) {
    uint8_t rows[kGroupRows];
    memcpy(rows, group + 2, kGroupRows);
    const uint16_t* offsets = weights.offsets + group[0] * weights.offsets_a_step();
    for (int row = 0; row < kGroupRows; row += kRowsAtOnce) {
      if (row > 0 && rows[row] == rows[row - 1]) break;  // a repeated row is done
      F32 sums[kRowsAtOnce][kVectors];
      TORCHACCEL_UNROLL for (int r = 0; r < kRowsAtOnce; ++r) {
        const int64_t place = rows[row + r];
        const float* before = chunk.sums + place * kTilePixels;
        const F32 bias = f32_splat(chunk.bias == nullptr ? -0.0f : chunk.bias[slab * kSlabRows + place]);
        TORCHACCEL_UNROLL for (int v = 0; v < kVectors; ++v) {
          sums[r][v] = chunk.begins ? bias : f32_load(before + 16 * v);
        }
      }
      multiply_steps<Offsets16, kRowsAtOnce, kVectors, 64, kShared>(weights.values + group[0] * kGroupRows, offsets,
                                                                    group[1], row, panel, sums);
      TORCHACCEL_UNROLL for (int r = 0; r < kRowsAtOnce; ++r) {
        const int64_t place = rows[row + r], channel = slab * kSlabRows + place;
        if (whole) {
          const int64_t at = first + channel * out.plane;
          finish_whole(out.residual == nullptr ? nullptr : out.residual + at, floor, sums[r], out.data + at, streams);
        } else if (direct) {
          finish_sums(out, *chunk.places, channel, floor, sums[r]);
        } else {
          float* after = ends ? row_sums : chunk.sums + place * kTilePixels;
          TORCHACCEL_UNROLL for (int v = 0; v < kVectors; ++v) f32_store(after + 16 * v, sums[r][v]);
          if (ends) finish_row(where, *chunk.places, kVectors, channel, row_sums);
        }
      }
    }
  }
}

using MultiplySlab = void (*)(const SparseF32&, const OutputF32&, const ChunkF32&, int64_t, int64_t);

template <bool kShared>
static MultiplySlab multiply_slab_of(int64_t pixels) {
  constexpr MultiplySlab kSlabs[] = {multiply_slab<1, kShared>, multiply_slab<2, kShared>, multiply_slab<3, kShared>,
                                     multiply_slab<4, kShared>, multiply_slab<5, kShared>, multiply_slab<6, kShared>};
  return kSlabs[(pixels - 1) / 16];
}

// Sums [rows][kTilePixels] of the output channels from `channel` on, into a channels_last output.
static void finish_channels_last(const Tile& tile, const OutputF32& out, const float* sums, int64_t channel,
                                 int64_t rows) {
  alignas(64) float turned[16 * kLanes];
  for (int64_t r = 0; r < rows; r += kLanes) {
    const int64_t lanes = rows - r < kLanes ? rows - r : kLanes;
    for (int64_t p = 0; p < tile.count; p += 16) {
      const uint8_t* from[16];
      for (int i = 0; i < 16; ++i) {  // channels that do not exist repeat the first, and are not stored
        from[i] = reinterpret_cast<const uint8_t*>(sums + (i < lanes ? r + i : r) * kTilePixels + p);
      }
      transpose16(from, 16, 0, reinterpret_cast<uint8_t*>(turned), 4 * kLanes);
      const int64_t pixels = tile.count - p < 16 ? tile.count - p : 16;
      for (int64_t i = 0; i < pixels; ++i) {
        finish_f32(out, (tile.row + p + i) * out.channels + channel + r, f32_load(turned + i * kLanes),
                   (1u << lanes) - 1);
      }
    }
  }
}

static void sparse_f32(const ImageF32& image, const SparseF32& weights, const OutputF32& out, const ShareF32& share,
                       uint8_t* scratch) {
  const int64_t chunks = weights.chunks(), tiles = share.tiles();
  float* panel = reinterpret_cast<float*>(scratch);
  float* sums = reinterpret_cast<float*>(scratch + kPanelF32Bytes);
  uint8_t* padding = scratch + sparse_f32_bytes(weights) - kLanes * 64;
  Tile tile;
  Places places;
  for (int64_t t = 0; t < tiles; ++t) {
    set_tile(image.in, share.tile(t), share.tile(t + 1), tile);
    set_places(tile, out, places);
    const MultiplySlab multiply = (weights.shared ? multiply_slab_of<true> : multiply_slab_of<false>)(tile.count);
    for (int64_t slab = share.first_slab, last; slab < share.last_slab; slab = last) {
      last = share.last_slab - slab < kRunSlabs ? share.last_slab : slab + kRunSlabs;
      for (int64_t c = 0; c < chunks; ++c) {
        const int64_t k = c * kDepthChunk, stop = c + 1 < chunks ? k + kDepthChunk : weights.depth;
        if (chunks > 1 || slab == share.first_slab) fill_panel(image, tile, k, stop, panel, padding);
        for (int64_t s = slab; s < last; ++s) {
          const ChunkF32 chunk = {
              panel, sums + (s - slab) * kSlabRows * kTilePixels, out.bias, c == 0, c + 1 == chunks, &places};
          multiply(weights, out, chunk, s, s * chunks + c);
        }
      }
      if (out.channels_last) {
        const int64_t channel = slab * kSlabRows, end = last * kSlabRows;
        finish_channels_last(tile, out, sums, channel, (end < out.channels ? end : out.channels) - channel);
      }
    }
  }
  if (out.streams) f32_streamed();
}

// Whether slabs [begin, end) lead nowhere out of the weights, their slabs and the panel; the lists are known to rise.
static bool sparse_f32_valid(const SparseF32& weights, int64_t begin, int64_t end) {
  const int64_t chunks = weights.chunks();
  const int32_t* group = weights.group;
  const int64_t low = weights.first_step(begin), high = weights.first_step(end);
  bool valid = low >= 0 && low <= high && high <= weights.steps;
  for (int64_t slab = begin; slab < end && valid; ++slab) {
    const int64_t left = weights.channels - slab * kSlabRows, rows = left < kSlabRows ? left : kSlabRows;
    const uint32_t last = static_cast<uint32_t>(rows - 1);
    for (int64_t g = weights.first[slab * chunks]; g < weights.first[(slab + 1) * chunks]; ++g) {
      const uint32_t places = static_cast<uint32_t>(group[3 * g + 2]);
      valid = valid && group[3 * g] >= low && group[3 * g + 1] >= 0 &&
              int64_t{group[3 * g]} + group[3 * g + 1] <= high && (places & 0xff) <= last &&
              (places >> 8 & 0xff) <= last && (places >> 16 & 0xff) <= last && places >> 24 <= last;
    }
  }
  if (!valid) return false;
  const uint16_t* offsets = weights.offsets + low * weights.offsets_a_step();
  const int64_t count = (high - low) * weights.offsets_a_step();
  uint16_t largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = offsets[i] > largest ? offsets[i] : largest;
  return largest <= kDepthChunk * kPanelStride;
}
