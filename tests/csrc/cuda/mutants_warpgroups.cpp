// Products by wgmma, of int8 matrices, dense and 2:4, and of 2:4 float16 images: for mutants.
#include "mutants_tilings.h"

using namespace torchaccel::cuda;

using One = WarpgroupTiling<64, 64, 4, 1>;
using Two = WarpgroupTiling<128, 64, 3, 1>;

extern "C" int product(const Case* c) {
  if (c->half != 0) return run_case<Product<Sparse24<__half>, Image, 16, One>>(*c, image_of(*c));
  if (c->two_four) return run_case<Product<Sparse24<int8_t>, Matrix, 16, Two>>(*c, matrix_of(*c));
  return run_case<Product<Dense<int8_t>, Matrix, 16, Two, One>>(*c, matrix_of(*c));
}
