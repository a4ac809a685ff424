// int8 products in the tiling that the library chooses, with a workspace of what it asks for: for mutants.
#include "mutants_tilings.h"

using namespace torchaccel::cuda;

extern "C" void emulate_register(const void* start, int64_t bytes, int64_t kind, const char* name);

using Chosen = Product<Dense<int8_t>, Matrix, 16, Large, Small>;

// Nothing is written where no tiling fits a block's `shared` bytes. out: the workspace's bytes, the last launch's
// blocks.
extern "C" void choose_and_run(const Case* c, int64_t shared, int64_t* out) {
  static uint4 memory[1 << 14];
  const auto workspace = [&](int64_t wanted) -> void* {
    out[0] = wanted;
    emulate_register(memory, wanted, 2, "workspace");
    return memory;
  };
  const Device device = {c->multiprocessors, static_cast<int>(shared), false};
  run<Chosen>(Call{c->weights, c->epilogue, device, nullptr, workspace}, matrix_of(*c));
  out[1] = gridDim.x;
}
