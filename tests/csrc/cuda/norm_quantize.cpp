// The CUDA kernels of norm_quantize_int8, compiled for the CPU, behind a C function for ctypes.
#include "norm_quantize.cuh"

using namespace torchaccel::cuda;

// source: f, h, b for float32, float16, bfloat16; target: s, u for int8, uint8. given_scale is null, or scale and
// zero_point are.
extern "C" void norm_quantize(char source, char target, const void* x, const void* weight, const void* bias, float eps,
                              int64_t centred, const float* given_scale, const int32_t* given_zero_point, void* q,
                              float* scale, int32_t* zero_point, int64_t rows, int64_t k) {
  const auto run = [&](auto element, auto integer) {
    using T = decltype(element);
    using Q = decltype(integer);
    const NormQuantize<T, Q> n = {static_cast<const T*>(x),
                                  static_cast<const T*>(weight),
                                  static_cast<const T*>(bias),
                                  eps,
                                  centred != 0,
                                  given_scale,
                                  given_zero_point,
                                  static_cast<Q*>(q),
                                  scale,
                                  zero_point,
                                  rows,
                                  k};
    torchaccel::cuda::norm_quantize(n, nullptr);
  };
  const auto with_target = [&](auto element) { target == 's' ? run(element, int8_t{}) : run(element, uint8_t{}); };
  if (source == 'f') return with_target(float{});
  if (source == 'h') return with_target(__half{});
  with_target(__nv_bfloat16{});
}
