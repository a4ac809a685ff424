// Packed weights and the tensor-core step of each format. Free of torch headers.
//
// A tile holds 64 output channels by 64 bytes of weights, as shared memory holds it: row r's 16-byte chunk c lies at
// swizzled<64>(r, c). Tiles of a band of 64 channels follow each other along K, or only those that are kept (tile
// skip). A format says how many bytes of the activations' K a tile covers, and multiplies one warp's share of it: kRows
// / 16 fragments of weights, each with kColumns / 8 of activations; or starts a warpgroup's products of all of it.
#pragma once

#include "operand.cuh"

namespace torchaccel::cuda {

constexpr int kBand = 64;             // output channels of a tile
constexpr int kTileValues = 64 * 64;  // bytes of its weights

struct Weights {
  const uint8_t* tiles;
  int bands, k_tiles;      // of the whole weight
  int kept;                // tiles that are there
  const int32_t* columns;  // with tile skip: the place along K of each kept tile, else null
  const int32_t* offsets;  // [bands + 1] into columns
};

// Fragments of weights from the band's tile: 16 rows from `row` on, 32 bytes from chunk 2 * step on.
__device__ inline void load_weights(uint32_t (&a)[4], const uint8_t* tile, int row, int step, int lane) {
  ptx::ldmatrix_x4(a, tile + swizzled<64>(row + lane % 16, 2 * step + lane / 16));
}

// int8 or a half type; 32 bytes of K a step.
template <typename X_>
struct Dense {
  using X = X_;
  using S = typename ptx::Sum<X>::type;
  static constexpr int kTileBytes = kTileValues;
  static constexpr int kBytesK = 64;  // of the activations, for each tile

  // weights: the band's tile; row: of the warp in it; x: [columns, 64 bytes], swizzled; column: of the warp in it.
  template <int kRows, int kColumns>
  __device__ static void multiply(S (&sums)[kRows / 16][kColumns / 8][4], const uint8_t* weights, int row,
                                  const uint8_t* x, int column, int lane) {
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      uint32_t a[kRows / 16][4], b[kColumns / 8][2];
#pragma unroll
      for (int i = 0; i < kRows / 16; ++i) load_weights(a[i], weights, row + i * 16, step, lane);
#pragma unroll
      for (int j = 0; j < kColumns / 8; j += 2) {
        const int from = column + j * 8 + lane % 8;
        if (j + 1 == kColumns / 8) {
          ptx::ldmatrix_x2(b[j], x + swizzled<kBytesK>(from, 2 * step + lane / 8 % 2));
        } else {  // two fragments at once
          uint32_t pair[4];
          ptx::ldmatrix_x4(pair, x + swizzled<kBytesK>(from + lane / 16 * 8, 2 * step + lane / 8 % 2));
          b[j][0] = pair[0];
          b[j][1] = pair[1];
          b[j + 1][0] = pair[2];
          b[j + 1][1] = pair[3];
        }
      }
#pragma unroll
      for (int i = 0; i < kRows / 16; ++i) {
#pragma unroll
        for (int j = 0; j < kColumns / 8; ++j) ptx::mma<X>(sums[i][j], a[i], b[j]);
      }
    }
  }

  // x: [kColumns, 64 bytes], swizzled; the last argument is the thread of its warpgroup.
  template <int kColumns>
  __device__ static void start(S (&sums)[kColumns / 8][4], const uint8_t* weights, const uint8_t* x, int) {
#pragma unroll
    for (int k = 0; k < kBytesK; k += 32) {
      ptx::wgmma<X, kColumns>(sums, ptx::descriptor<64>(weights + k), ptx::descriptor<kBytesK>(x + k));
    }
  }
};

// 2:4 along K: a tile holds the two kept of each four neighbours, and after them the metadata of mma_sp in the order of
// its lanes: [step][16-row fragment][lane] for int8, [16-row fragment][lane] for halves, whose lanes serve one step
// each.
template <typename X_>
struct Sparse24 {
  using X = X_;
  using S = typename ptx::Sum<X>::type;
  static constexpr bool kBytes = sizeof(X) == 1;
  static constexpr int kTileBytes = kTileValues + (kBytes ? 2 : 1) * (kBand / 16) * kWarp * 4;
  static constexpr int kBytesK = 128;

  template <int kRows, int kColumns>
  __device__ static void multiply(S (&sums)[kRows / 16][kColumns / 8][4], const uint8_t* weights, int row,
                                  const uint8_t* x, int column, int lane) {
    step<0, kRows, kColumns>(sums, weights, row, x, column, lane);
    step<1, kRows, kColumns>(sums, weights, row, x, column, lane);
  }

  template <int kColumns>
  __device__ static void start(S (&sums)[kColumns / 8][4], const uint8_t* weights, const uint8_t* x, int thread) {
    const uint32_t* metadata = reinterpret_cast<const uint32_t*>(weights + kTileValues) + thread;
    const uint32_t first = metadata[0], second = kBytes ? metadata[kWarpgroup] : first;
    ptx::wgmma_sp<X, kColumns, 0>(sums, ptx::descriptor<64>(weights), ptx::descriptor<kBytesK>(x), first);
    ptx::wgmma_sp<X, kColumns, kBytes ? 0 : 1>(sums, ptx::descriptor<64>(weights + 32),
                                               ptx::descriptor<kBytesK>(x + 64), second);
  }

 private:
  template <int kStep, int kRows, int kColumns>
  __device__ static void step(S (&sums)[kRows / 16][kColumns / 8][4], const uint8_t* weights, int row, const uint8_t* x,
                              int column, int lane) {
    const auto* metadata = reinterpret_cast<const uint32_t*>(weights + kTileValues);
    uint32_t a[kRows / 16][4], places[kRows / 16];
#pragma unroll
    for (int i = 0; i < kRows / 16; ++i) {
      load_weights(a[i], weights, row + i * 16, kStep, lane);
      const int fragment = (kBytes ? kStep * (kBand / 16) : 0) + row / 16 + i;
      places[i] = metadata[fragment * kWarp + lane];
    }
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
      uint32_t b[4];
      ptx::ldmatrix_x4(b, x + swizzled<kBytesK>(column + j * 8 + lane % 8, 4 * kStep + lane / 8));
#pragma unroll
      for (int i = 0; i < kRows / 16; ++i) ptx::mma_sp<X, kBytes ? 0 : kStep>(sums[i][j], a[i], b, places[i]);
    }
  }
};

// Four int8 values as pairs of X, exactly: a byte b + 128 in the mantissa of 2^23 makes the float 2^23 + 128 + b.
template <typename X>
__device__ inline void widen(uint32_t bytes, uint32_t& low, uint32_t& high) {
  bytes ^= 0x80808080u;
  X values[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    values[i] = from_float<X>(__int_as_float(__byte_perm(bytes, 0x4b000000u, 0x7440u | i)) - 8388736.0f);
  }
  low = bits_of(values[0], values[1]);
  high = bits_of(values[2], values[3]);
}

// int8 weights times halves: a tile covers 64 values of K. mma adds over its 16 slots in any order, so a lane's four
// neighbouring weights fill its slots 2t, 2t + 1, 2t + 8 and 2t + 9, and the activations follow them: 8 bytes of a row.
template <typename X_>
struct WeightOnly {
  using X = X_;
  using S = float;
  static constexpr int kTileBytes = kTileValues;
  static constexpr int kBytesK = 128;

  template <int kRows, int kColumns>
  __device__ static void multiply(S (&sums)[kRows / 16][kColumns / 8][4], const uint8_t* weights, int row,
                                  const uint8_t* x, int column, int lane) {
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      uint32_t bytes[kRows / 16][4];
#pragma unroll
      for (int i = 0; i < kRows / 16; ++i) load_weights(bytes[i], weights, row + i * 16, pair, lane);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t b[kColumns / 8][2];
        const int chunk = (2 * pair + half) * 2 + lane % 4 / 2;
#pragma unroll
        for (int j = 0; j < kColumns / 8; ++j) {
          const int from = swizzled<kBytesK>(column + j * 8 + lane / 4, chunk) + lane % 2 * 8;
          const auto two = *reinterpret_cast<const Pack<uint32_t, 2>*>(x + from);
          b[j][0] = two.values[0];
          b[j][1] = two.values[1];
        }
#pragma unroll
        for (int i = 0; i < kRows / 16; ++i) {
          uint32_t a[4];
          widen<X>(bytes[i][2 * half], a[0], a[2]);
          widen<X>(bytes[i][2 * half + 1], a[1], a[3]);
#pragma unroll
          for (int j = 0; j < kColumns / 8; ++j) ptx::mma<X>(sums[i][j], a, b[j]);
        }
      }
    }
  }
};

}  // namespace torchaccel::cuda
