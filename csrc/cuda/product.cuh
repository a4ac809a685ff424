// From a product's shape to its launch: the tilings that a format comes in, and which one serves. Free of torch
// headers.
#pragma once

#include "gemm.cuh"
#include "select.h"

namespace torchaccel::cuda {

// What was chosen for one call; `partial_bytes` of workspace, aligned to 16 bytes, are the caller's to give.
struct Plan : Choice {
  int64_t partial_bytes = 0;
};

template <typename Format, typename T>
constexpr TilingFacts facts_of() {
  // Halves multiply at half the speed of int8; 2:4 covers twice the K at the same one.
  constexpr double kMacsOfStage = double{T::kChannels} * T::kRows * 64;
  constexpr bool kWarpgroups = std::is_same_v<typename T::Loop, WarpgroupLoop>;
  return {T::kChannels,           T::kRows,     T::kBlocks, shared_bytes<Format, T>(),
          stage_bytes<Format, T>, kMacsOfStage, kWarpgroups};
}

// A format over an operand, in these tilings; kPiece as in OperandTile.
template <typename Format, typename Operand, int kPiece, typename... Tilings>
struct Product {
  using S = typename Format::S;
  static constexpr int kTilings = sizeof...(Tilings);
  static constexpr TilingFacts kFacts[] = {facts_of<Format, Tilings>()...};

  // steps: tiles along K, with tile skip those that a band has on average.
  static Plan plan(int64_t rows, int64_t channels, int64_t steps, const Device& device) {
    Plan made{choose(kFacts, kTilings, rows, channels, steps, device)};
    if (made.tiling < 0) return made;
    const TilingFacts& t = kFacts[made.tiling];
    const int64_t tiles = ceil_div(rows, t.rows) * ceil_div(channels, t.channels);
    if (made.whole < tiles) made.partial_bytes = int64_t{2} * made.blocks * t.rows * t.channels * int64_t{sizeof(S)};
    return made;
  }

  static void run(const Plan& plan, const Weights& weights, const Operand& x, const Epilogue& e, int64_t steps,
                  void* partial, cudaStream_t stream) {
    int index = 0;
    const auto one = [&](auto tiling) {
      using T = decltype(tiling);
      if (index++ != plan.tiling) return;
      Schedule s;
      s.tiles_o = static_cast<int>(ceil_div(e.channels, T::kChannels));
      s.tiles_p = static_cast<int>(ceil_div(e.rows, T::kRows));
      s.whole = std::min(plan.whole, s.tiles_o * s.tiles_p);
      s.steps = static_cast<int>(steps);
      s.partial = partial;
      launch(gemm_kernel<Format, Operand, T, kPiece>, plan.blocks, T::kThreads, shared_bytes<Format, T>(), stream,
             weights, x, e, s);
      const int64_t shared = int64_t{s.tiles_o} * s.tiles_p - s.whole;
      if (shared == 0) return;
      launch(finish_kernel<T::kChannels, T::kRows, S>, ceil_div(shared * T::kRows * T::kChannels / 4, 256), 256, 0,
             stream, s, plan.blocks, e);
    };
    (one(Tilings{}), ...);
  }
};

}  // namespace torchaccel::cuda
