// From an op's tensors to the plain structs of kernels.h.
#pragma once

#include <string>
#include <vector>

#include "../common/check.h"
#include "kernels.h"

namespace torchaccel {

// What all int8 ops take besides their operands; as in torchaccel/ops/_epilogue.py.
struct EpilogueTensors {
  const Tensor& colsum;
  const OptionalTensor& scale_a;  // absent where the kernel finds it
  const Tensor& scale_b;
  const OptionalTensor& zero_point;
  const OptionalTensor& bias;
  const std::string& activation;
  ScalarType out_dtype;
  const OptionalTensor& scale_out;
  const OptionalTensor& zero_point_out;
};

struct ResidualTensors {
  const OptionalTensor& residual;  // [N, O, OH, OW]
  const OptionalTensor& scale;
  const OptionalTensor& zero_point;
};

// Of x [..., K] times b [N, K] transposed.
struct LinearSizes {
  int64_t m, n, k;
  std::vector<int64_t> out;  // [..., N]
};
LinearSizes linear_sizes(const char* op, const char* name, const Tensor& x, const Tensor& b);

// The epilogue of `units` (rows of a matrix, images of a convolution) that may each have a scale and a zero point;
// `out`, the residual and the sizes of a unit are still to be set. `depth`: products per output;
// `is_signed`: the activations are int8.
Epilogue make_epilogue(Arguments& args, const EpilogueTensors& tensors, int64_t units, int64_t channels, int64_t depth,
                       bool is_signed);

// Sets the residual of `out` [N, O, OH, OW]; `kept` holds its channels_last copy where one was needed.
void set_residual(Arguments& args, const ResidualTensors& tensors, const Tensor& out, Epilogue& epilogue, Tensor& kept);

struct Geometry {
  const std::vector<int64_t>&stride, &padding, &dilation;
};

// The convolution over `a` [N, C, H, W], channels_last, with a kernel of kh x kw.
Input make_input(Arguments& args, const Tensor& a, const Geometry& geometry, int64_t kh, int64_t kw, int64_t groups);

// Padding is stored as bytes: with padding, zero points lie in the range of the activations' type.
void check_padding(Arguments& args, const Input& input, bool is_signed);

Tensor empty_nhwc(int64_t n, int64_t c, int64_t h, int64_t w, ScalarType dtype);

// float32 as it is, int8 and uint8 with their scale; `data` is still to be set.
Output make_output(Arguments& args, ScalarType out_dtype, const OptionalTensor& scale_out,
                   const OptionalTensor& zero_point_out);

Activation activation_of(const char* op, const std::string& name);

// torch.empty_like(x, dtype=dtype): dense, with the strides of x where x is dense.
Tensor empty_like(const Tensor& x, ScalarType dtype);

// `x` in the layout of `like`, a dense tensor of its shape: itself, unless it has other strides, gaps or overlaps.
Tensor in_layout(const Tensor& x, const Tensor& like);

// int8 or uint8, else an error.
bool is_signed_int8(const char* op, const char* name, ScalarType dtype);

}  // namespace torchaccel
