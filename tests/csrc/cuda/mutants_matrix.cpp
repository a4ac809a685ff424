// int8 products of a matrix, in small tilings: for mutants, which are compiled one by one.
#include "mutants_tilings.h"

using namespace torchaccel::cuda;

extern "C" int product(const Case* c) {
  return run_case<Product<Dense<int8_t>, Matrix, 16, Small, Large, Staged>>(*c, matrix_of(*c));
}
