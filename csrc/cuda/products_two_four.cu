// Products and convolutions with int8 weights pruned 2:4.
#include "products.cuh"

namespace torchaccel::cuda {

bool run_two_four(bool is_signed, const Call& call, const Matrix& x) {
  return is_signed ? run<Sparse24Product<int8_t, Matrix>>(call, x) : run<Sparse24Product<uint8_t, Matrix>>(call, x);
}

bool run_two_four(bool is_signed, const Call& call, const Image& x) {
  return is_signed ? run<Sparse24Product<int8_t, Image>>(call, x) : run<Sparse24Product<uint8_t, Image>>(call, x);
}

}  // namespace torchaccel::cuda
