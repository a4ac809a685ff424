// The loops over a tile's K, and the tilings that go by them. Free of torch headers.
//
// Both go around the same ring of stages, filled by `load` so many steps ahead, with one barrier a step:
//   WarpLoop: mma.sync on what each warp reads by ldmatrix, without bank conflicts since both operands are swizzled;
//     sm_80 and later. At half the speed of wgmma on sm_90.
//   WarpgroupLoop: wgmma, which reads both operands from shared memory by itself; sm_90a. The products of one step run
//     while the next step's barrier and copies go on, so a stage is free again two steps later.
#pragma once

#include "weights.cuh"

namespace torchaccel::cuda {

// A stage holds its rows of x and then its weights, and begins where any swizzled rows may.
template <typename Format, typename T>
constexpr int x_bytes = T::kRows * Format::kBytesK;

template <typename Format, typename T>
constexpr int stage_bytes = (x_bytes<Format, T> + T::kChannels / kBand * Format::kTileBytes + 1023) / 1024 * 1024;

template <typename Format, typename T>
__device__ inline uint8_t* stage_of(uint8_t* shared, int step) {
  return shared + step % T::kStages * stage_bytes<Format, T>;
}

// The weights of the band that `channel` of the tile lies in.
template <typename Format, typename T>
__device__ inline const uint8_t* band_of(const uint8_t* stage, int channel) {
  return stage + x_bytes<Format, T> + channel / kBand * Format::kTileBytes;
}

struct WarpLoop {
  static constexpr bool kHere = true;

  // Adds `count` steps to a warp's sums; `load(i)` starts the copies of step i to its stage.
  template <typename Format, typename T, typename S, typename Load>
  __device__ static void run(S (&sums)[T::kWarpO / 16][T::kWarpP / 8][4], int count, const Load& load, uint8_t* shared,
                             int warp_o, int warp_p, int lane) {
    constexpr int kAhead = T::kStages - 1;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (i < count) load(i);
      ptx::cp_async_commit();
    }
    for (int i = 0; i < count; ++i) {
      ptx::cp_async_wait<kAhead - 1>();
      __syncthreads();  // stage i is there for all, and all are done with the stage that is loaded next
      if (i + kAhead < count) load(i + kAhead);
      ptx::cp_async_commit();
      const uint8_t* stage = stage_of<Format, T>(shared, i);
      Format::template multiply<T::kWarpO, T::kWarpP>(sums, band_of<Format, T>(stage, warp_o), warp_o % kBand, stage,
                                                      warp_p, lane);
    }
  }
};

struct WarpgroupLoop {
  static constexpr bool kHere = ptx::kWarpgroups;

  template <typename Format, typename T, typename S, typename Load>
  __device__ static void run(S (&sums)[1][T::kRows / 8][4], int count, const Load& load, uint8_t* shared, int warp_o,
                             int, int) {
    constexpr int kAhead = T::kStages - 2;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (i < count) load(i);
      ptx::cp_async_commit();
    }
    for (int i = 0; i < count; ++i) {
      ptx::cp_async_wait<kAhead - 1>();
      ptx::fence_proxy_async();
      __syncthreads();  // stage i is there for all, and nobody's products read stage i - 2 any more
      const uint8_t* stage = stage_of<Format, T>(shared, i);
      ptx::wgmma_fence(sums[0]);
      Format::template start<T::kRows>(sums[0], band_of<Format, T>(stage, warp_o), stage, threadIdx.x % kWarpgroup);
      ptx::wgmma_commit();
      if (i + kAhead < count) load(i + kAhead);  // to the stage of i - 2
      ptx::cp_async_commit();
      ptx::wgmma_wait<1>(sums[0]);
    }
    ptx::wgmma_wait<0>(sums[0]);
  }
};

template <int kChannels_, int kRows_, int kWarpsO_, int kWarpsP_, int kStages_, int kBlocks_>
struct Tiling {
  using Loop = WarpLoop;
  static constexpr int kChannels = kChannels_, kRows = kRows_;
  static constexpr int kWarpsO = kWarpsO_, kWarpsP = kWarpsP_, kStages = kStages_;
  static constexpr int kBlocks = kBlocks_;  // of a multiprocessor, which bounds the registers
  static constexpr int kWarpO = kChannels / kWarpsO, kWarpP = kRows / kWarpsP;  // a warp's share
  static constexpr int kThreads = kWarpsO * kWarpsP * kWarp;
  static constexpr int kTeam = 1;  // warps whose channels leave together
  static_assert(kChannels % kBand == 0 && kBand % kWarpO == 0 && kWarpO % 16 == 0 && kWarpP % 8 == 0,
                "whole fragments");
};

// Each warpgroup makes a band of channels, each of its warps 16 of them, for all rows.
template <int kChannels_, int kRows_, int kStages_, int kBlocks_>
struct WarpgroupTiling : Tiling<kChannels_, kRows_, kChannels_ / 16, 1, kStages_, kBlocks_> {
  using Loop = WarpgroupLoop;
  static constexpr int kTeam = kBand / 16;
};

}  // namespace torchaccel::cuda
