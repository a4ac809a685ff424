// Products of an int8 matrix by dense int8 weights.
#include "products.cuh"

namespace torchaccel::cuda {

namespace {

// Its shared memory tells which code it is: 4 bytes or 16 KB, to which the system may add 1 KB of its own.
constexpr int kWith = 4096, kWithout = 1;
__global__ void probe_kernel(int* out) {
  __shared__ int words[ptx::kWarpgroups ? kWith : kWithout];
  words[threadIdx.x] = out[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = words[0];
}

}  // namespace

bool has_warpgroup_code() {
  cudaFuncAttributes found = {};
  return cudaFuncGetAttributes(&found, probe_kernel) == cudaSuccess && found.sharedSizeBytes >= kWith * sizeof(int);
}

bool run_dense(bool is_signed, const Call& call, const Matrix& x) {
  const int bytes = static_cast<int>(x.pitch % 16);
  return is_signed ? run_dense_int8<int8_t>(call, x, bytes) : run_dense_int8<uint8_t>(call, x, bytes);
}

}  // namespace torchaccel::cuda
