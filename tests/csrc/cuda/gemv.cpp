// The CUDA products of up to 8 rows, compiled for the CPU, behind C functions for ctypes.
#include "gemv.cuh"

using namespace torchaccel::cuda;

// type: s, u, h, b, f for int8, uint8, float16, bfloat16, float32.
extern "C" void gemv(char type, const void* x, int64_t k, const uint8_t* tiles, int64_t channels_of_block,
                     int64_t splits, const Epilogue* e, void* workspace) {
  Weights w = {};
  w.tiles = tiles;
  w.bands = static_cast<int>(ceil_div(e->channels, kBand));
  w.k_tiles = static_cast<int>(ceil_div(k, 64));
  w.kept = w.bands * w.k_tiles;
  const GemvPlan plan = {static_cast<int>(channels_of_block), static_cast<int>(splits)};
  const auto run = [&](auto element) {
    torchaccel::cuda::gemv(static_cast<const decltype(element)*>(x), k, w, *e, plan, workspace, nullptr);
  };
  switch (type) {
    case 's':
      return run(int8_t{});
    case 'u':
      return run(uint8_t{});
    case 'h':
      return run(__half{});
    case 'b':
      return run(__nv_bfloat16{});
    default:
      return run(float{});
  }
}

// Writes the plan's channels of a block, its splits and the bytes of its workspace to `to`.
extern "C" void plan(int64_t m, int64_t n, int64_t k, int64_t bytes_x, int64_t multiprocessors, int64_t* to) {
  const GemvPlan chosen = gemv_plan(m, n, k, static_cast<int>(bytes_x), static_cast<int>(multiprocessors));
  to[0] = chosen.rows;
  to[1] = chosen.splits;
  to[2] = gemv_workspace(chosen, m, n);
}
