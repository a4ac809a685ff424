#include "products.h"

using namespace torchaccel::cuda;

extern "C" int product(const Case* c) {
  const Image x = image_of(*c);
  if (c->two_four) {
    return c->is_signed ? run_case<SkipProduct<Sparse24<int8_t>>>(*c, x)
                        : run_case<SkipProduct<Sparse24<uint8_t>>>(*c, x);
  }
  return c->is_signed ? run_case<SkipProduct<Dense<int8_t>>>(*c, x) : run_case<SkipProduct<Dense<uint8_t>>>(*c, x);
}
