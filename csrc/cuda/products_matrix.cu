// Products of an int8 matrix by dense int8 weights.
#include "products.cuh"

namespace torchaccel::cuda {

bool run_dense(bool is_signed, const Call& call, const Matrix& x) {
  const int bytes = static_cast<int>(x.pitch % 16);
  return is_signed ? run_dense_int8<int8_t>(call, x, bytes) : run_dense_int8<uint8_t>(call, x, bytes);
}

}  // namespace torchaccel::cuda
