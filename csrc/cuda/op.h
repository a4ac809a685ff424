// What every CUDA op needs from torch: its current stream, tensors like others, and errors that say what to do.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <optional>

namespace torchaccel::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline cudaStream_t current_stream(const Tensor& x) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// Launch errors are known at once and cost no synchronization; what goes wrong later, torch reports.
inline void check_launch(const char* op) {
  const cudaError_t error = cudaGetLastError();
  const char* hint = error == cudaErrorNoKernelImageForDevice
                         ? "; the kernels need compute capability 8.0 or later, or a build for this device"
                         : "";
  STD_TORCH_CHECK(error == cudaSuccess, op, ": the CUDA kernel did not start: ", cudaGetErrorString(error), hint);
}

// torch.empty_like(x, dtype=dtype): the strides of x where x is dense.
inline Tensor empty_like(const Tensor& x, ScalarType dtype) {
  using torch::stable::detail::from;
  std::array<StableIValue, 6> stack{
      from(x),           from(std::optional(dtype)), from(std::nullopt), from(std::nullopt), from(std::nullopt),
      from(std::nullopt)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::empty_like", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace torchaccel::cuda
