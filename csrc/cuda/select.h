// Which tiling a product gets: a small cost model over what each tiling must do. Free of CUDA, so that tests read it.
#pragma once

#include <algorithm>
#include <cstdint>

namespace torchaccel::cuda {

struct Device {
  int multiprocessors;
  int shared_bytes;  // that one block may have
};

// What the model knows of a tiling.
struct TilingFacts {
  int channels, rows;
  int blocks;         // of a multiprocessor, by its registers
  int shared_bytes;   // of a block
  int stage_bytes;    // that one step along K moves into shared memory
  double stage_macs;  // int8 multiplications of one step, or what they would be at that speed
};

struct Choice {
  int tiling = -1;
  int splits = 1;
  double cycles = 0;
};

// Per multiprocessor and clock, at best, seen through mma.sync and L2; and what a tile costs beside its steps.
constexpr double kMacs = 2048, kL2Bytes = 48, kTileCycles = 1500, kPartialBytes = 16, kFinishCycles = 4000;
constexpr int kMaxSplits = 16;

// rows, channels: of the output; steps: along K. Ties go to fewer splits, then to the earlier tiling.
inline Choice choose(const TilingFacts* tilings, int count, int64_t rows, int64_t channels, int64_t steps,
                     const Device& d) {
  Choice best;
  for (int i = 0; i < count; ++i) {
    const TilingFacts& t = tilings[i];
    if (t.shared_bytes > d.shared_bytes) continue;
    const int64_t tiles = (rows + t.rows - 1) / t.rows * ((channels + t.channels - 1) / t.channels);
    for (int splits = 1; splits <= kMaxSplits && splits <= std::max<int64_t>(steps, 1); ++splits) {
      const int64_t blocks = tiles * splits;
      const int64_t busy = std::min<int64_t>(t.blocks, (blocks + d.multiprocessors - 1) / d.multiprocessors);
      const int64_t waves = (blocks + busy * d.multiprocessors - 1) / (busy * d.multiprocessors);
      // Blocks of one multiprocessor share its tensor cores and its way to L2; one alone hides less of its waits.
      const double step = std::max(t.stage_macs / kMacs, t.stage_bytes / kL2Bytes) * static_cast<double>(busy);
      const double alone = busy == 1 && t.blocks > 1 ? 1.3 : 1.0;
      double cycles = static_cast<double>(waves) *
                      (step * alone * static_cast<double>((steps + splits - 1) / splits) + kTileCycles);
      if (splits > 1) {
        const double moved = 4.0 * (splits + 1) * static_cast<double>(rows * channels);
        cycles += kFinishCycles + moved / (kPartialBytes * d.multiprocessors);
      }
      if (best.tiling < 0 || cycles < best.cycles * 0.999) best = {i, splits, cycles};
    }
  }
  return best;
}

}  // namespace torchaccel::cuda
