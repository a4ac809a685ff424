// Norms of float32 rows to int8 and of float16 rows to uint8: for mutants.
#include "norm_quantize.cuh"

using namespace torchaccel::cuda;

namespace {

template <typename T, typename Q>
void run(const void* x, const void* weight, const void* bias, float eps, bool centred, const float* given_scale,
         const int32_t* given_zero_point, void* q, float* scale, int32_t* zero_point, int64_t rows, int64_t k) {
  const NormQuantize<T, Q> n = {static_cast<const T*>(x),
                                static_cast<const T*>(weight),
                                static_cast<const T*>(bias),
                                eps,
                                centred,
                                given_scale,
                                given_zero_point,
                                static_cast<Q*>(q),
                                scale,
                                zero_point,
                                rows,
                                k};
  norm_quantize(n, nullptr);
}

}  // namespace

// type: f or h.
extern "C" void norm(char type, const void* x, const void* weight, const void* bias, float eps, int64_t centred,
                     const float* given_scale, const int32_t* given_zero_point, void* q, float* scale,
                     int32_t* zero_point, int64_t rows, int64_t k) {
  (type == 'f' ? run<float, int8_t> : run<__half, uint8_t>)(x, weight, bias, eps, centred != 0, given_scale,
                                                            given_zero_point, q, scale, zero_point, rows, k);
}
