#include "products.h"

using namespace torchaccel::cuda;

extern "C" int product(const Case* c) {
  const Matrix x = matrix_of(*c);
  return c->is_signed ? run_dense_case<int8_t>(*c, x, c->pitch) : run_dense_case<uint8_t>(*c, x, c->pitch);
}

// What the library would choose on a device: the cycles that its model expects, or -1 where nothing fits.
extern "C" double plan(int64_t rows, int64_t channels, int64_t k, int64_t multiprocessors, int64_t shared,
                       int64_t warpgroups, int64_t* chosen) {
  const Device device = {static_cast<int>(multiprocessors), static_cast<int>(shared), warpgroups != 0};
  const Plan made = DenseProduct<int8_t, Matrix>::plan(rows, channels, ceil_div(k, 64), device);
  chosen[0] = made.tiling;
  chosen[1] = made.blocks;
  chosen[2] = made.whole;
  return made.tiling < 0 ? -1.0 : made.cycles;
}
