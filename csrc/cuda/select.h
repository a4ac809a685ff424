// Which tiling a product gets, and how its tiles are shared: a small cost model over what each tiling must do. Free of
// CUDA, so that tests read it.
#pragma once

#include <algorithm>
#include <cstdint>

namespace torchaccel::cuda {

struct Device {
  int multiprocessors;
  int shared_bytes;  // that one block may have
  bool warpgroups;   // multiplies by wgmma
};

// What the model knows of a tiling.
struct TilingFacts {
  int channels, rows;
  int blocks;         // of a multiprocessor, by its registers
  int shared_bytes;   // of a block
  int stage_bytes;    // that one step along K moves into shared memory
  double stage_macs;  // int8 multiplications of one step, or what they would be at that speed
  bool warpgroups;    // by wgmma
};

// tiling -1: none fits. Of the tiles, `whole` are made by one of `blocks` each, the rest shared by all of them.
struct Choice {
  int tiling = -1;
  int blocks = 0, whole = 0;
  double cycles = 0;
};

// Per multiprocessor and clock, at best: int8 multiplications by mma.sync and by wgmma, bytes from L2 and from memory;
// and the clocks that a tile costs beside its steps, and a second kernel. From data sheets and arithmetic until a GPU
// has measured them.
constexpr double kMacs = 2048, kWarpgroupMacs = 4096, kL2Bytes = 48, kMemoryBytes = 14, kTileCycles = 1500,
                 kFinishCycles = 3000;
// A multiprocessor with one block where two would fit hides less of its waits.
constexpr double kAlone = 1.3;
constexpr int64_t kLeastShare = 4;  // steps of a block, below which its start costs more than it helps

// rows, channels: of the output; steps: along K. Ties go to the earlier tiling, the fewer blocks and whole tiles.
inline Choice choose(const TilingFacts* tilings, int count, int64_t rows, int64_t channels, int64_t steps,
                     const Device& d) {
  Choice best;
  const double memory = static_cast<double>(steps * (rows + channels) * 64) / (kMemoryBytes * d.multiprocessors);
  for (int i = 0; i < count; ++i) {
    const TilingFacts& t = tilings[i];
    if (t.shared_bytes > d.shared_bytes || (t.warpgroups && !d.warpgroups)) continue;
    const double macs = t.warpgroups ? kWarpgroupMacs : kMacs;
    const int64_t tiles = (rows + t.rows - 1) / t.rows * ((channels + t.channels - 1) / t.channels);
    const double tile_bytes = 4.0 * t.rows * t.channels;
    for (int busy = 1; busy <= t.blocks; ++busy) {
      // Blocks of one multiprocessor share its tensor cores and its way to L2.
      const double step =
          std::max(t.stage_macs / macs, t.stage_bytes / kL2Bytes) * busy * (busy < t.blocks ? kAlone : 1);
      const double tile = step * static_cast<double>(steps) + kTileCycles;
      const int64_t most = int64_t{d.multiprocessors} * busy;
      const auto consider = [&](int64_t blocks, int64_t whole, double cycles) {
        cycles = std::max(cycles, memory + kTileCycles);
        if (best.tiling >= 0 && cycles >= best.cycles * 0.999) return;
        best = {i, static_cast<int>(blocks), static_cast<int>(whole), cycles};
      };
      const int64_t waves = (tiles + most - 1) / most;
      consider(std::min(tiles, most), tiles, static_cast<double>(waves) * tile);
      // All but the last full wave whole; that one and the rest shared.
      const int64_t full = tiles / most, whole = std::max<int64_t>(full - 1, 0) * most;
      const int64_t shared = (tiles - whole) * steps;
      const int64_t blocks = whole > 0 ? most : std::min(most, shared / kLeastShare);
      if (tiles % most == 0 || blocks < 2) continue;
      const double moved = 2 * 2 * tile_bytes * static_cast<double>(blocks);  // up to two partial tiles, there and back
      const double share = static_cast<double>((shared + blocks - 1) / blocks) * step + 2 * kTileCycles;
      consider(
          blocks, whole,
          static_cast<double>(whole / most) * tile + share + kFinishCycles + moved / (kL2Bytes * d.multiprocessors));
    }
  }
  return best;
}

}  // namespace torchaccel::cuda
