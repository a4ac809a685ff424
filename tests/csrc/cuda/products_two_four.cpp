#include "products.h"

using namespace torchaccel::cuda;

extern "C" int product(const Case* c) {
  if (c->pitch != 0) {
    const Matrix x = matrix_of(*c);
    return c->is_signed ? run_case<Sparse24Product<int8_t, Matrix>>(*c, x)
                        : run_case<Sparse24Product<uint8_t, Matrix>>(*c, x);
  }
  const Image x = image_of(*c);
  return c->is_signed ? run_case<Sparse24Product<int8_t, Image>>(*c, x)
                      : run_case<Sparse24Product<uint8_t, Image>>(*c, x);
}
