// float16 and float32 products of up to 8 rows: for mutants.
#include "gemv.cuh"

using namespace torchaccel::cuda;

// As gemv.cpp's; type: h or f.
extern "C" void gemv(char type, const void* x, int64_t k, const uint8_t* tiles, int64_t channels_of_block,
                     int64_t splits, const Epilogue* e, void* workspace) {
  Weights w = {};
  w.tiles = tiles;
  w.k_tiles = static_cast<int>(ceil_div(k, 64));
  const GemvPlan plan = {static_cast<int>(channels_of_block), static_cast<int>(splits)};
  if (type == 'h') return gemv(static_cast<const __half*>(x), k, w, *e, plan, workspace, nullptr);
  gemv(static_cast<const float*>(x), k, w, *e, plan, workspace, nullptr);
}
