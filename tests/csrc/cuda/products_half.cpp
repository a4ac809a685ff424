#include "products.h"

using namespace torchaccel::cuda;

extern "C" int product(const Case* c) {
  const Image x = image_of(*c);
  if (c->half == 1) {
    return c->two_four ? run_case<SkipProduct<Sparse24<__half>>>(*c, x) : run_case<SkipProduct<Dense<__half>>>(*c, x);
  }
  return c->two_four ? run_case<SkipProduct<Sparse24<__nv_bfloat16>>>(*c, x)
                     : run_case<SkipProduct<Dense<__nv_bfloat16>>>(*c, x);
}
