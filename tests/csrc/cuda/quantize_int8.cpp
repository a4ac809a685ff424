// The CUDA kernels of quantize_int8, compiled for the CPU, behind C functions for ctypes.
#include "quantize_int8.cuh"

namespace {

// Calls run(const T*, Q*) for the types that the two letters name: f, h, b for float32, float16, bfloat16; s, u.
template <typename Run>
void dispatch(char source, char target, const void* x, void* q, Run run) {
  const auto with_output = [&](auto* from) {
    if (target == 's') return run(from, static_cast<int8_t*>(q));
    run(from, static_cast<uint8_t*>(q));
  };
  if (source == 'f') return with_output(static_cast<const float*>(x));
  if (source == 'h') return with_output(static_cast<const __half*>(x));
  with_output(static_cast<const __nv_bfloat16*>(x));
}

}  // namespace

extern "C" void quantize_tensor(char source, char target, const void* x, void* q, const float* scale,
                                const int32_t* zero_point, int64_t n) {
  dispatch(source, target, x, q,
           [&](auto* from, auto* to) { torchaccel::cuda::quantize_tensor(from, to, scale, zero_point, n, nullptr); });
}

extern "C" void quantize_rows(char source, char target, const void* x, void* q, float* scale, int32_t* zero_point,
                              int64_t rows, int64_t k) {
  dispatch(source, target, x, q, [&](auto* from, auto* to) {
    torchaccel::cuda::quantize_rows(from, to, scale, zero_point, rows, k, nullptr);
  });
}
