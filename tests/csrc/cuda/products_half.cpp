#include "products.h"

using namespace torchaccel::cuda;

extern "C" int product(const Case* c) {
  const Image x = image_of(*c);
  if (c->half == 1) {
    return c->two_four ? run_case<SkipSparse24Product<__half>>(*c, x) : run_case<SkipDenseProduct<__half>>(*c, x);
  }
  return c->two_four ? run_case<SkipSparse24Product<__nv_bfloat16>>(*c, x)
                     : run_case<SkipDenseProduct<__nv_bfloat16>>(*c, x);
}
