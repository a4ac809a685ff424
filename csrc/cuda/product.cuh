// From a product's shape to its launch: the tilings that a format comes in, and which one serves. Free of torch
// headers.
#pragma once

#include "gemm.cuh"
#include "select.h"

namespace torchaccel::cuda {

// What was chosen for one call; `partial_bytes` of workspace are the caller's to give.
struct Plan {
  int tiling = -1;  // -1: no tiling fits the device
  int splits = 1;
  int64_t partial_bytes = 0;
};

// A format over an operand, in these tilings; kPiece as in OperandTile.
template <typename Format, typename Operand, int kPiece, typename... Tilings>
struct Product {
  using S = typename Format::S;
  static constexpr int kTilings = sizeof...(Tilings);

  // steps: tiles along K, with tile skip those that a band has on average.
  static Plan plan(int64_t rows, int64_t channels, int64_t steps, const Device& device) {
    static constexpr TilingFacts facts[] = {facts_of<Tilings>()...};
    const Choice choice = choose(facts, kTilings, rows, channels, steps, device);
    return {choice.tiling, choice.splits, choice.splits > 1 ? choice.splits * rows * channels * int64_t{sizeof(S)} : 0};
  }

  static void run(const Plan& plan, const Weights& weights, const Operand& x, const Epilogue& e, void* partial,
                  const Device& device, cudaStream_t stream) {
    int index = 0;
    const auto one = [&](auto tiling) {
      using T = decltype(tiling);
      if (index++ != plan.tiling) return;
      Schedule s;
      s.tiles_o = static_cast<int>(ceil_div(e.channels, T::kChannels));
      s.tiles_p = static_cast<int>(ceil_div(e.rows, T::kRows));
      s.splits = plan.splits;
      s.partial = partial;
      const int64_t tiles = int64_t{s.tiles_o} * s.tiles_p * s.splits;
      const int64_t blocks = std::min(tiles, int64_t{device.multiprocessors} * T::kBlocks);
      launch(gemm_kernel<Format, Operand, T, kPiece>, blocks, T::kThreads, shared_bytes<Format, T>(), stream, weights,
             x, e, s);
    };
    (one(Tilings{}), ...);
    if (plan.splits > 1) {
      const int64_t groups = int64_t{e.rows} * ceil_div(e.channels, 4);
      const int64_t blocks = std::min(ceil_div(groups, 256), int64_t{device.multiprocessors} * 16);
      launch(finish_kernel<S>, blocks, 256, 0, stream, static_cast<const S*>(partial), plan.splits, e);
    }
  }

 private:
  template <typename T>
  static constexpr TilingFacts facts_of() {
    constexpr int kStage = T::kChannels / kBand * Format::kTileBytes + T::kRows * Format::kBytesK;
    // Halves multiply at half the speed of int8; 2:4 covers twice the K at the same one.
    constexpr double kMacsOfStage = double{T::kChannels} * T::kRows * 64;
    return {T::kChannels, T::kRows, T::kBlocks, shared_bytes<Format, T>(), kStage, kMacsOfStage};
  }
};

}  // namespace torchaccel::cuda
