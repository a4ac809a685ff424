// Checks of an op's arguments, shared by the CPU and CUDA kernels. The public functions in torchaccel/ops check the
// same in the same words; here it is what keeps a direct call through torch.ops inside its memory.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

namespace torchaccel {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline std::string name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "torch.float32";
    case ScalarType::Half:
      return "torch.float16";
    case ScalarType::BFloat16:
      return "torch.bfloat16";
    case ScalarType::Char:
      return "torch.int8";
    case ScalarType::Byte:
      return "torch.uint8";
    case ScalarType::Int:
      return "torch.int32";
    default:
      return "dtype " + std::to_string(static_cast<int>(type));
  }
}

inline std::string shape_of(const Tensor& tensor) {
  std::string text = "(";
  for (int64_t i = 0; i < tensor.dim(); ++i) text += (i ? ", " : "") + std::to_string(tensor.size(i));
  return text + ")";
}

inline void check_dtype(const char* op, const char* name, ScalarType given,
                        std::initializer_list<ScalarType> accepted) {
  std::string names;
  for (const ScalarType type : accepted) {
    if (type == given) return;
    names += (names.empty() ? "" : ", ") + name_of(type);
  }
  STD_TORCH_CHECK(false, op, ": ", name, " is ", name_of(given), ", accepted are ", names);
}

inline void check_device(const char* op, const char* name, const Tensor& tensor, const Tensor& input) {
  STD_TORCH_CHECK(tensor.device() == input.device(), op, ": ", name, " is on another device than the input");
}

// Two integers (height, width), each at least `least`.
inline void check_pair(const char* op, const char* name, const std::vector<int64_t>& pair, int64_t least) {
  STD_TORCH_CHECK(pair.size() == 2 && pair[0] >= least && pair[1] >= least, op, ": ", name,
                  " does not hold what is accepted, two integers of at least ", least);
}

// `tensor` itself where it is contiguous already: asking costs less than a call through the dispatcher.
inline Tensor in_order(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// Whether [N, C, H, W] lies in channels_last; where a size is 1, any stride is as good.
inline bool is_nhwc(const Tensor& tensor) {
  const int64_t order[] = {1, 3, 2, 0};
  int64_t expected = 1;
  bool is = true;
  for (const int64_t i : order) {
    is = is && (tensor.size(i) == 1 || tensor.stride(i) == expected);
    expected *= tensor.size(i);
  }
  return is;
}

// `tensor` itself where it is in channels_last already.
inline Tensor in_nhwc(const Tensor& tensor) {
  return is_nhwc(tensor) ? tensor : torch::stable::contiguous(tensor, torch::headeronly::MemoryFormat::ChannelsLast);
}

// The arguments of one call: checks each, and keeps the contiguous copies that it had to make alive.
class Arguments {
 public:
  // `op` names the op in errors; `input` is the tensor whose device all others must share.
  Arguments(const char* op, const Tensor& input) : op_(op), input_(input) {}

  const char* op() const { return op_; }

  void same_device(const char* name, const Tensor& tensor) const { check_device(op_, name, tensor, input_); }

  // A vector of n elements, or of n_or where that is given; nullptr where `tensor` is absent.
  template <typename T>
  const T* vector(const char* name, const OptionalTensor& tensor, ScalarType type, int64_t n, int64_t n_or = -1) {
    if (!tensor.has_value()) return nullptr;
    check_dtype(op_, name, tensor->scalar_type(), {type});
    check_device(op_, name, *tensor, input_);
    const bool fits = tensor->dim() == 1 && (tensor->numel() == n || tensor->numel() == n_or);
    STD_TORCH_CHECK(fits, op_, ": ", name, " has shape ", shape_of(*tensor), ", accepted is (", n, ",)",
                    n_or >= 0 && n_or != n ? " or (" + std::to_string(n_or) + ",)" : "");
    kept_.push_back(in_order(*tensor));
    return static_cast<const T*>(kept_.back().const_data_ptr());
  }

  // A required scalar or vector.
  template <typename T>
  const T* vector(const char* name, const Tensor& tensor, ScalarType type, int64_t n, int64_t n_or = -1) {
    return vector<T>(name, OptionalTensor(tensor), type, n, n_or);
  }

  // The place of one element, of any shape, on the device of the input; nullptr where `tensor` is absent.
  template <typename T>
  const T* one(const char* name, const OptionalTensor& tensor, ScalarType type) {
    if (!tensor.has_value()) return nullptr;
    check_dtype(op_, name, tensor->scalar_type(), {type});
    check_device(op_, name, *tensor, input_);
    STD_TORCH_CHECK(tensor->numel() == 1, op_, ": ", name, " has ", tensor->numel(), " elements, accepted is 1");
    return static_cast<const T*>(tensor->const_data_ptr());
  }

  // Its value, of a tensor on the CPU.
  template <typename T>
  std::optional<T> scalar(const char* name, const OptionalTensor& tensor, ScalarType type) {
    const T* value = one<T>(name, tensor, type);
    return value == nullptr ? std::nullopt : std::optional<T>(*value);
  }

 private:
  const char* op_;
  const Tensor& input_;
  std::vector<Tensor> kept_;
};

}  // namespace torchaccel
