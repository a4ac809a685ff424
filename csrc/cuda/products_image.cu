// Convolutions of an int8 image with dense int8 weights.
#include "products.cuh"

namespace torchaccel::cuda {

bool run_dense(bool is_signed, const Call& call, const Image& x) {
  return is_signed ? run_dense_int8<int8_t>(call, x, x.channels) : run_dense_int8<uint8_t>(call, x, x.channels);
}

}  // namespace torchaccel::cuda
