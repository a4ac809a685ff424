#include "products.h"

using namespace torchaccel::cuda;

extern "C" int product(const Case* c) {
  const Image x = image_of(*c);
  if (c->two_four) {
    return c->is_signed ? run_case<SkipSparse24Product<int8_t>>(*c, x) : run_case<SkipSparse24Product<uint8_t>>(*c, x);
  }
  return c->is_signed ? run_case<SkipDenseProduct<int8_t>>(*c, x) : run_case<SkipDenseProduct<uint8_t>>(*c, x);
}
