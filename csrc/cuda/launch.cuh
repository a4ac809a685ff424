// Launching a kernel. Free of torch headers; the one place with <<<>>>, so that a host compiler can stand in for it.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace torchaccel::cuda {

constexpr int kWarp = 32, kWarpgroup = 128;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline bool aligned(const void* pointer, int bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

#ifdef __CUDACC__
// `shared` is the size of ptx::shared_memory() in bytes. An error shows in cudaGetLastError.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int shared, cudaStream_t stream,
            Arguments... arguments) {
  constexpr int kDefaultShared = 48 << 10;  // more must be asked for
  if (shared > kDefaultShared) cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), static_cast<unsigned>(shared), stream>>>(
      arguments...);
}
#endif

}  // namespace torchaccel::cuda
