// ptx_vectors.cuh on the emulated machine, behind a C function for ctypes.
#include "ptx_vectors.cuh"

extern "C" int64_t ptx_vector(const char* name, int64_t in_words, int64_t out_words, const uint32_t* in,
                              uint32_t* out) {
  const auto* found = torchaccel::cuda::vectors::find(name);
  if (found == nullptr || found->in_words != in_words || found->out_words != out_words) return 0;
  found->run(in, out);
  return 1;
}
