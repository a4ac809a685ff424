// 2:4 products of int8 matrices and float16 images: for mutants.
#include "mutants_tilings.h"

using namespace torchaccel::cuda;

extern "C" int product(const Case* c) {
  if (c->half == 0) return run_case<Product<Sparse24<int8_t>, Matrix, 16, Small, Large>>(*c, matrix_of(*c));
  return run_case<Product<Sparse24<__half>, Image, 16, Small>>(*c, image_of(*c));
}
