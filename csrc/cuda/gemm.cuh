// D[p, o] = sum over k of x[p, k] * w[o, k], then the epilogue: int8 and half products and convolutions, dense, 2:4 and
// with skipped tiles. Free of torch headers.
//
// A block makes tiles of kChannels output channels by kRows rows of x, one after the other (persistent). kStages stages
// of one weight tile's depth travel through shared memory by cp.async; the warps split the tile kWarpsO by kWarpsP and
// read it by ldmatrix, without bank conflicts since both operands are swizzled. The weights are mma's 16-row operand:
// 2:4 takes the same path, and few rows of x cost 8 columns, not 16. One barrier a stage. Sums pass through shared
// memory on their way out, so that eight lanes hold neighbouring channels of one row and store whole sectors. With
// `splits` > 1 the blocks share K and leave partial sums, which finish_kernel adds in a fixed order. Bound by the
// tensor cores from about 300 rows on an H100, below by reading the weights once.
#pragma once

#include "epilogue.cuh"
#include "weights.cuh"

namespace torchaccel::cuda {

template <int kChannels_, int kRows_, int kWarpsO_, int kWarpsP_, int kStages_, int kBlocks_>
struct Tiling {
  static constexpr int kChannels = kChannels_, kRows = kRows_;
  static constexpr int kWarpsO = kWarpsO_, kWarpsP = kWarpsP_, kStages = kStages_;
  static constexpr int kBlocks = kBlocks_;  // of a multiprocessor, which bounds the registers
  static constexpr int kWarpO = kChannels / kWarpsO, kWarpP = kRows / kWarpsP;  // a warp's share
  static constexpr int kThreads = kWarpsO * kWarpsP * kWarp;
  static_assert(kChannels % kBand == 0 && kBand % kWarpO == 0 && kWarpO % 16 == 0 && kWarpP % 8 == 0,
                "whole fragments");
};

// What a launch does: tiles in groups of kGroup bands, so that the blocks running at once share rows and weights in L2.
struct Schedule {
  int tiles_o, tiles_p, splits;
  void* partial;  // [splits, rows, channels] sums where splits > 1
};

// A row of a warp's staging area: padded so that neither the writes of fragments nor the reads of rows collide in a
// bank.
template <typename T>
constexpr int staged_row = T::kWarpO + 4;

template <typename Format, typename T>
constexpr int shared_bytes() {
  constexpr int kStage = T::kChannels / kBand * Format::kTileBytes + T::kRows * Format::kBytesK;
  constexpr int kStaging = T::kWarpsO * T::kRows * staged_row<T> * 4;
  return kStage * T::kStages > kStaging ? kStage * T::kStages : kStaging;
}

struct Tile {
  int o, p, split;
};

__device__ inline Tile tile_of(const Schedule& s, int id) {
  constexpr int kGroup = 8;
  const int tiles = s.tiles_o * s.tiles_p;
  Tile t;
  t.split = id / tiles;
  id %= tiles;
  const int first = id / (kGroup * s.tiles_p) * kGroup;
  const int wide = min(kGroup, s.tiles_o - first);
  id -= first * s.tiles_p;
  t.o = first + id % wide;
  t.p = id / wide;
  return t;
}

// The sums of a warp, through its own staging area to the output or the partial sums. All of them are staged first: the
// loop over rows that follows holds none, and its long code is there once.
template <typename T, typename S>
__device__ inline void store_sums(const S (&sums)[T::kWarpO / 16][T::kWarpP / 8][4], uint8_t* shared, const Epilogue& e,
                                  S* partial, int channel, int row, int warp, int lane) {
  constexpr int kWidth = T::kWarpO / 8;  // channels of a lane
  auto* staging = reinterpret_cast<S*>(shared) + warp * T::kWarpP * staged_row<T>;
#pragma unroll
  for (int j = 0; j < T::kWarpP / 8; ++j) {
#pragma unroll
    for (int i = 0; i < T::kWarpO / 16; ++i) {
#pragma unroll
      for (int d = 0; d < 4; ++d) {
        staging[(j * 8 + lane % 4 * 2 + d % 2) * staged_row<T> + i * 16 + d / 2 * 8 + lane / 4] = sums[i][j][d];
      }
    }
  }
  __syncwarp();
  const int mine = lane % 8 * kWidth;
  const auto terms = channel_terms<kWidth>(e, channel + mine);
  const int rows = terms.count > 0 ? min(T::kWarpP, e.rows - row) : 0;
#pragma unroll 1
  for (int r = lane / 8; r < rows; r += kWarp / 8) {
    const auto held = *reinterpret_cast<const Pack<S, kWidth>*>(staging + r * staged_row<T> + mine);
    if (partial == nullptr) {
      finish(e, held.values, row + r, terms);
    } else {
      const int64_t index = static_cast<int64_t>(row + r) * e.channels + terms.channel;
      store(partial, index, terms.whole, terms.count, held);
    }
  }
}

template <typename Format, typename Operand, typename T, int kPiece>
__global__ void __launch_bounds__(T::kThreads, T::kBlocks)
    gemm_kernel(Weights w, Operand x, Epilogue e, Schedule schedule) {
  using S = typename Format::S;
  constexpr int kTiles = T::kChannels / kBand;
  constexpr int kWeightBytes = kTiles * Format::kTileBytes;
  constexpr int kStageBytes = kWeightBytes + T::kRows * Format::kBytesK;
  uint8_t* shared = ptx::shared_memory();
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int warp_o = warp % T::kWarpsO * T::kWarpO, warp_p = warp / T::kWarpsO * T::kWarpP;
  const int total = schedule.tiles_o * schedule.tiles_p * schedule.splits;
  for (int id = blockIdx.x; id < total; id += gridDim.x) {
    const Tile tile = tile_of(schedule, id);
    const OperandTile<Operand, T::kRows, Format::kBytesK, T::kThreads, kPiece> rows(x, tile.p * T::kRows, threadIdx.x);
    // The tiles [first, last) along K of each of the kTiles bands; with tile skip, of the only one.
    const int skip = w.columns != nullptr ? w.offsets[tile.o] : 0;
    const int all = w.columns != nullptr ? w.offsets[tile.o + 1] - skip : w.k_tiles;
    const int first = static_cast<int>(static_cast<int64_t>(all) * tile.split / schedule.splits);
    const int count = static_cast<int>(static_cast<int64_t>(all) * (tile.split + 1) / schedule.splits) - first;

    const auto load = [&](int i) {
      uint8_t* stage = shared + i % T::kStages * kStageBytes;
      const int at = skip + first + i;
      rows.load((w.columns != nullptr ? w.columns[at] : at) * Format::kBytesK, stage + kWeightBytes);
#pragma unroll
      for (int band = 0; band < kTiles; ++band) {
        // Past the last band: any weights will do, their sums are not stored.
        const int source = w.columns != nullptr ? 0 : min(tile.o * kTiles + band, w.bands - 1);
        const uint8_t* from = w.tiles + (static_cast<int64_t>(source) * w.k_tiles + at) * Format::kTileBytes;
#pragma unroll
        for (int c = 0; c < Format::kTileBytes; c += T::kThreads * 16) {
          const int byte = c + threadIdx.x * 16;
          if (byte < Format::kTileBytes) ptx::cp_async<16>(stage + band * Format::kTileBytes + byte, from + byte);
        }
      }
    };

    S sums[T::kWarpO / 16][T::kWarpP / 8][4] = {};
#pragma unroll
    for (int i = 0; i < T::kStages - 1; ++i) {
      if (i < count) load(i);
      ptx::cp_async_commit();
    }
    for (int i = 0; i < count; ++i) {
      ptx::cp_async_wait<T::kStages - 2>();
      __syncthreads();  // stage i is there for all, and all are done with the stage that is loaded next
      if (i + T::kStages - 1 < count) load(i + T::kStages - 1);
      ptx::cp_async_commit();
      const uint8_t* stage = shared + i % T::kStages * kStageBytes;
      Format::template multiply<T::kWarpO, T::kWarpP>(sums, stage + warp_o / kBand * Format::kTileBytes, warp_o % kBand,
                                                      stage + kWeightBytes, warp_p, lane);
    }
    __syncthreads();  // the stages become the staging area
    S* partial = nullptr;
    if (schedule.splits > 1) {
      partial = static_cast<S*>(schedule.partial) + static_cast<int64_t>(tile.split) * e.rows * e.channels;
    }
    store_sums<T>(sums, shared, e, partial, tile.o * T::kChannels + warp_o, tile.p * T::kRows + warp_p, warp, lane);
    __syncthreads();  // and stages again
  }
}

// Adds the partial sums of a split product, split by split, and finishes them; a thread takes 4 channels of a row.
template <typename S>
__global__ void __launch_bounds__(256) finish_kernel(const S* partial, int splits, Epilogue e) {
  constexpr int kWidth = 4;
  const int groups = (e.channels + kWidth - 1) / kWidth;
  const int64_t total = static_cast<int64_t>(e.rows) * groups;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t id = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; id < total; id += step) {
    const int row = static_cast<int>(id / groups);
    const auto terms = channel_terms<kWidth>(e, static_cast<int>(id % groups) * kWidth);
    S sums[kWidth] = {};
    for (int split = 0; split < splits; ++split) {
      const S* from = partial + (static_cast<int64_t>(split) * e.rows + row) * e.channels + terms.channel;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        if (i < terms.count) sums[i] += from[i];
      }
    }
    finish(e, sums, row, terms);
  }
}

}  // namespace torchaccel::cuda
