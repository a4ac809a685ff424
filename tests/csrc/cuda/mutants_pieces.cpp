// Rows that are no whole 16 bytes, of a matrix or an image: for mutants.
#include "mutants_tilings.h"

using namespace torchaccel::cuda;

template <typename X, typename Operand>
int run_of(const Case& c, const Operand& x, int64_t row_bytes) {
  if (row_bytes % 4 == 0) return run_case<Product<Dense<X>, Operand, 4, Small>>(c, x);
  return run_case<Product<Dense<X>, Operand, 1, Small>>(c, x);
}

extern "C" int product(const Case* c) {
  if (c->pitch != 0) return run_of<int8_t>(*c, matrix_of(*c), c->pitch);
  return run_of<uint8_t>(*c, image_of(*c), c->channels);
}
