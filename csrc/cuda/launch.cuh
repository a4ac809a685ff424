// Launching a kernel. Free of torch headers; the one place with <<<>>>, so that a host compiler can stand in for it.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace torchaccel::cuda {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline bool aligned(const void* pointer, int bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

#ifdef __CUDACC__
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, cudaStream_t stream, Arguments... arguments) {
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), 0, stream>>>(arguments...);
}
#endif

}  // namespace torchaccel::cuda
