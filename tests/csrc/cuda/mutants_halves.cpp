// bfloat16 convolutions, and bfloat16 matrices by int8 weights: for mutants.
#include "mutants_tilings.h"

using namespace torchaccel::cuda;

extern "C" int product(const Case* c) {
  using X = __nv_bfloat16;
  if (c->pitch == 0) return run_case<Product<Dense<X>, Image, 16, Small>>(*c, image_of(*c));
  const Matrix x = matrix_of(*c);
  return c->pitch % 16 == 0 ? run_case<Product<WeightOnly<X>, Matrix, 16, Small, Large>>(*c, x)
                            : run_case<Product<WeightOnly<X>, Matrix, 2, Small>>(*c, x);
}
