#include "products.h"

using namespace torchaccel::cuda;

template <typename X>
int run_of(const Case& c) {
  const Matrix x = matrix_of(c);
  return c.pitch % 16 == 0 ? run_case<WeightOnlyProduct<X, 16>>(c, x) : run_case<WeightOnlyProduct<X, 2>>(c, x);
}

extern "C" int product(const Case* c) { return c->half == 1 ? run_of<__half>(*c) : run_of<__nv_bfloat16>(*c); }
