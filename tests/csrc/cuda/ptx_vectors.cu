// ptx_vectors.cuh behind a C function for ctypes: `make cuda-vectors` builds build/cuda/libptx_vectors.so of it.
#include "ptx_vectors.cuh"

// in, out: device memory. The error of the launch and of the kernel, "" where there was none.
extern "C" __attribute__((visibility("default"))) const char* ptx_vector(const char* name, int in_words, int out_words,
                                                                         const uint32_t* in, uint32_t* out) {
  const auto* found = torchaccel::cuda::vectors::find(name);
  if (found == nullptr || found->in_words != in_words || found->out_words != out_words) return "no such vector";
  found->run(in, out);
  const cudaError_t launched = cudaGetLastError();
  const cudaError_t error = launched != cudaSuccess ? launched : cudaDeviceSynchronize();
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}
