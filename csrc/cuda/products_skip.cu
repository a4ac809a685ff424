// Convolutions with int8 weights whose tiles of zeros are skipped, dense or 2:4 within the others.
#include "products.cuh"

namespace torchaccel::cuda {

bool run_skip(bool is_signed, bool two_four, const Call& call, const Image& x) {
  if (two_four) {
    return is_signed ? run<SkipSparse24Product<int8_t>>(call, x) : run<SkipSparse24Product<uint8_t>>(call, x);
  }
  return is_signed ? run<SkipDenseProduct<int8_t>>(call, x) : run<SkipDenseProduct<uint8_t>>(call, x);
}

}  // namespace torchaccel::cuda
