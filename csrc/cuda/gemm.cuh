// D[p, o] = sum over k of x[p, k] * w[o, k], then the epilogue: int8 and half products and convolutions, dense, 2:4 and
// with skipped tiles. Free of torch headers.
//
// A block makes tiles of kChannels output channels by kRows rows of x, one after the other (persistent). kStages stages
// of one weight tile's depth travel through shared memory by cp.async, and mainloop.cuh multiplies them. The weights
// are the operand of 16 or 64 rows: 2:4 takes the same path, and few rows of x cost 8 columns, not 16. Sums pass
// through shared memory on their way out, so that eight lanes hold neighbouring channels of one row and store whole
// sectors. Tiles that would fill the last wave only in part are shared by all blocks, step by step along K (stream-K);
// what a block cannot finish it leaves as partial sums, which finish_kernel adds in a fixed order. Bound by the tensor
// cores from about 300 rows on an H100, below by reading the weights once.
#pragma once

#include "epilogue.cuh"
#include "mainloop.cuh"

namespace torchaccel::cuda {

// What a launch does. Tiles go in groups of bands, so that the blocks running at once share rows and weights in L2.
struct Schedule {
  int tiles_o, tiles_p;
  int whole;      // so many tiles are made by one block each, the others by all of them in equal shares
  int steps;      // of a tile along K; with skipped tiles, the shares that its K is divided into
  void* partial;  // [blocks, 2, rows, channels of a tile] sums: of the block's first and last tile
};

// The steps of the shared tiles, one after the other, that block `block` of `blocks` begins with.
__device__ inline int64_t share_begin(int64_t steps, int block, int blocks) { return steps * block / blocks; }

// A row of a team's staging area: padded so that neither the writes of fragments nor the reads of rows collide in a
// bank.
template <typename T>
constexpr int staged_row = T::kTeam * T::kWarpO + 4;

template <typename Format, typename T>
constexpr int shared_bytes() {
  constexpr int kStaging = T::kWarpsO / T::kTeam * T::kRows * staged_row<T> * 4;
  constexpr int kStages = stage_bytes<Format, T> * T::kStages;
  return kStages > kStaging ? kStages : kStaging;
}

struct Tile {
  int o, p;
};

__device__ inline Tile tile_of(const Schedule& s, int id) {
  constexpr int kGroup = 8;
  const int first = id / (kGroup * s.tiles_p) * kGroup;
  const int wide = min(kGroup, s.tiles_o - first);
  id -= first * s.tiles_p;
  return {first + id % wide, id / wide};
}

// The sums of a warp, through the staging area of its team to the output, or to `partial` [rows, channels of the tile].
// All of them are staged first: the loop over rows that follows holds none, and its long code is there once.
template <typename T, typename S>
__device__ inline void store_sums(const S (&sums)[T::kWarpO / 16][T::kWarpP / 8][4], uint8_t* shared, const Epilogue& e,
                                  S* partial, const Tile& tile, int warp_o, int warp_p, int warp, int lane) {
  constexpr int kWidth = T::kTeam * T::kWarpO / 8;  // channels of a lane
  auto* staging = reinterpret_cast<S*>(shared) + warp / T::kTeam * T::kWarpP * staged_row<T>;
  const int member = warp % T::kTeam, in_team = member * T::kWarpO;
#pragma unroll
  for (int j = 0; j < T::kWarpP / 8; ++j) {
#pragma unroll
    for (int i = 0; i < T::kWarpO / 16; ++i) {
#pragma unroll
      for (int d = 0; d < 4; ++d) {
        staging[(j * 8 + lane % 4 * 2 + d % 2) * staged_row<T> + in_team + i * 16 + d / 2 * 8 + lane / 4] =
            sums[i][j][d];
      }
    }
  }
  if constexpr (T::kTeam == 1) {
    __syncwarp();
  } else {
    __syncthreads();
  }
  const int mine = lane % 8 * kWidth, row = tile.p * T::kRows + warp_p;
  const int channel = warp_o - in_team + mine;
  const auto terms = channel_terms<kWidth>(e, tile.o * T::kChannels + channel);
  const int rows = terms.count > 0 ? min(T::kWarpP, e.rows - row) : 0;
#pragma unroll 1
  for (int r = member * (kWarp / 8) + lane / 8; r < rows; r += T::kTeam * (kWarp / 8)) {
    const auto held = *reinterpret_cast<const Pack<S, kWidth>*>(staging + r * staged_row<T> + mine);
    if (partial == nullptr) {
      finish(e, held.values, row + r, terms);
    } else {
      store(partial, (warp_p + r) * T::kChannels + channel, true, kWidth, held);
    }
  }
}

template <typename Format, typename Operand, typename T, int kPiece>
__device__ inline void gemm(const Weights& w, const Operand& x, const Epilogue& e, const Schedule& schedule) {
  using S = typename Format::S;
  constexpr int kTiles = T::kChannels / kBand;
  uint8_t* shared = ptx::shared_memory();
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int warp_o = warp % T::kWarpsO * T::kWarpO, warp_p = warp / T::kWarpsO * T::kWarpP;

  const int64_t shared_steps = (int64_t{schedule.tiles_o} * schedule.tiles_p - schedule.whole) * schedule.steps;
  int64_t at = share_begin(shared_steps, blockIdx.x, gridDim.x);
  const int64_t end = share_begin(shared_steps, blockIdx.x + 1, gridDim.x);
  for (int next = blockIdx.x; next < schedule.whole || at < end; next += gridDim.x) {
    // The steps [from, to) of tile `id`.
    int id = next, from = 0, to = schedule.steps;
    S* partial = nullptr;
    if (next >= schedule.whole) {
      const auto which = static_cast<int>(at / schedule.steps);
      id = schedule.whole + which;
      from = static_cast<int>(at - int64_t{which} * schedule.steps);
      to = static_cast<int>(min(int64_t{to}, from + end - at));
      at += to - from;
      if (from > 0 || to < schedule.steps) {
        const int slot = 2 * blockIdx.x + (from == 0);
        partial = static_cast<S*>(schedule.partial) + int64_t{slot} * T::kRows * T::kChannels;
      }
    }
    const Tile tile = tile_of(schedule, id);
    const OperandTile<Operand, T::kRows, Format::kBytesK, T::kThreads, kPiece> rows(x, tile.p * T::kRows, threadIdx.x);
    // The weight tiles along K of each of the kTiles bands; with tile skip, of the only one.
    const int skip = w.columns != nullptr ? w.offsets[tile.o] : 0;
    const int all = w.columns != nullptr ? w.offsets[tile.o + 1] - skip : w.k_tiles;
    const int first = static_cast<int>(int64_t{all} * from / schedule.steps);
    const int count = static_cast<int>(int64_t{all} * to / schedule.steps) - first;

    const auto load = [&](int i) {
      uint8_t* stage = stage_of<Format, T>(shared, i);
      const int step = skip + first + i;
      rows.load((w.columns != nullptr ? w.columns[step] : step) * Format::kBytesK, stage);
#pragma unroll
      for (int band = 0; band < kTiles; ++band) {
        // Past the last band: any weights will do, their sums are not stored.
        const int source = w.columns != nullptr ? 0 : min(tile.o * kTiles + band, w.bands - 1);
        uint8_t* to = stage + x_bytes<Format, T> + band * Format::kTileBytes;
        const uint8_t* weights = w.tiles + (int64_t{source} * w.k_tiles + step) * Format::kTileBytes;
#pragma unroll
        for (int c = 0; c < Format::kTileBytes; c += T::kThreads * 16) {
          const int byte = c + threadIdx.x * 16;
          if (byte < Format::kTileBytes) ptx::cp_async<16>(to + byte, weights + byte);
        }
      }
    };

    S sums[T::kWarpO / 16][T::kWarpP / 8][4] = {};
    T::Loop::template run<Format, T>(sums, count, load, shared, warp_o, warp_p, lane);
    __syncthreads();  // the stages become the staging area
    store_sums<T>(sums, shared, e, partial, tile, warp_o, warp_p, warp, lane);
    __syncthreads();  // and stages again
  }
}

template <typename Format, typename Operand, typename T, int kPiece>
__global__ void __launch_bounds__(T::kThreads, T::kBlocks)
    gemm_kernel(Weights w, Operand x, Epilogue e, Schedule schedule) {
  if constexpr (T::Loop::kHere) {
    gemm<Format, Operand, T, kPiece>(w, x, e, schedule);
  } else {
    __trap();  // the wrong architecture's code: better no output than that of nobody
  }
}

// Adds the partial sums of the shared tiles in the order of their blocks, and finishes them; a thread takes 4 channels
// of a row. blocks: of the launch that left the sums.
template <int kChannels, int kRows, typename S>
__global__ void __launch_bounds__(256) finish_kernel(Schedule schedule, int blocks, Epilogue e) {
  constexpr int kWidth = 4, kGroups = kChannels / kWidth;
  const int tiles = schedule.tiles_o * schedule.tiles_p - schedule.whole;
  const int64_t steps = int64_t{tiles} * schedule.steps, total = int64_t{tiles} * kRows * kGroups;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t id = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; id < total; id += stride) {
    const int which = static_cast<int>(id / (kRows * kGroups)), rest = static_cast<int>(id % (kRows * kGroups));
    const int row = rest / kGroups, channel = rest % kGroups * kWidth;
    const Tile tile = tile_of(schedule, schedule.whole + which);
    const auto terms = channel_terms<kWidth>(e, tile.o * kChannels + channel);
    const int p = tile.p * kRows + row;
    if (p >= e.rows || terms.count <= 0) continue;
    const int64_t begin = int64_t{which} * schedule.steps, end = begin + schedule.steps;
    S sums[kWidth] = {};
    bool whole = false;  // one block made it
    for (auto block = static_cast<int>(begin * blocks / steps); share_begin(steps, block, blocks) < end; ++block) {
      const int64_t from = max(share_begin(steps, block, blocks), begin);
      const int64_t to = min(share_begin(steps, block + 1, blocks), end);
      whole = from == begin && to == end;
      if (whole || from >= to) continue;
      const int64_t slot = 2 * int64_t{block} + (from == begin);
      const S* part = static_cast<const S*>(schedule.partial) + slot * kRows * kChannels + row * kChannels + channel;
      const auto held = *reinterpret_cast<const Pack<S, kWidth>*>(part);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) sums[i] += held.values[i];
    }
    if (!whole) finish(e, sums, p, terms);
  }
}

}  // namespace torchaccel::cuda
