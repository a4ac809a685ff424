// sparse_int8_conv2d: checks, and shares of equal nonzeros for the threads; see sparse.inl.
#include <torch/csrc/stable/library.h>

#include "arguments.h"
#include "isa.h"
#include "parallel.h"

namespace torchaccel {
namespace {

// Every index inside its range, so that no call reads outside of its panel; one vectorized pass over the columns, 4
// bytes a block, against hundreds of bytes that a block's products read.
void check_indices(const char* op, const SparseWeights& w) {
  const int64_t rows = w.channels / w.block_rows;
  int32_t bad = 0;
  for (int64_t i = 0; i < rows; ++i) bad |= w.row_offsets[i + 1] < w.row_offsets[i];
  STD_TORCH_CHECK(bad == 0 && w.row_offsets[0] == 0 && w.row_offsets[rows] == w.blocks, op,
                  ": row_offsets must rise from 0 to the ", w.blocks, " blocks");
  STD_TORCH_CHECK(kernels().sparse_valid(w), op, ": columns must lie in 0 to ", w.depth4 - 1,
                  " and ascend within each row");
}

// Estimated cycles of a panel's first `block` blocks of 16 channels.
int64_t cost(const SparseWeights& w, int64_t block) {
  const int64_t channel = block * kLanes < w.channels ? block * kLanes : w.channels;
  const int64_t nonzeros = w.row_offsets[channel / w.block_rows];
  return nonzeros * (w.block_rows == 1 ? 3 : 9) + block * 600;
}

// The first task (panel * blocks + block) of thread `part` of `parts`, so that all have about the same cost.
int64_t first_task(const SparseWeights& w, int64_t panels, int64_t blocks, int64_t part, int64_t parts) {
  const int64_t each = cost(w, blocks), target = panels * each / parts * part;
  if (part == parts) return panels * blocks;
  int64_t block = 0;
  while (block < blocks && cost(w, block) < target % each) ++block;
  return target / each * blocks + block;
}

// The last three arguments are the tiles that the CUDA kernel reads.
Tensor sparse_int8_conv2d(const Tensor& a, const Tensor& values, const Tensor& columns, const Tensor& row_offsets,
                          const Tensor& colsum, const Tensor& scale_a, const Tensor& scale_b,
                          const OptionalTensor& zero_point, const OptionalTensor& bias, const OptionalTensor& residual,
                          const OptionalTensor& scale_residual, const OptionalTensor& zero_point_residual,
                          const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
                          const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                          const std::string& activation, ScalarType out_dtype, const OptionalTensor& scale_out,
                          const OptionalTensor& zero_point_out, const OptionalTensor&, const OptionalTensor&,
                          const OptionalTensor&) {
  Arguments args("sparse_int8_conv2d", a);
  const bool is_signed = is_signed_int8(args.op(), "a", a.scalar_type());
  check_dtype(args.op(), "values", values.scalar_type(), {ScalarType::Char});
  check_device(args.op(), "values", values, a);
  const int64_t rows = values.dim() == 3 ? values.size(1) : 0;
  STD_TORCH_CHECK((rows == 1 || rows == 4) && values.size(2) == 4, args.op(), ": values has shape ", shape_of(values),
                  ", accepted are [blocks, 1, 4] and [blocks, 4, 4]");
  STD_TORCH_CHECK(a.dim() == 4 && a.size(1) % 4 == 0, args.op(), ": a has shape ", shape_of(a),
                  ", accepted is [N, C, H, W] with C a multiple of 4");
  check_pair(args.op(), "kernel_size", kernel_size, 1);
  const int64_t n = a.size(0), channels = scale_b.numel(), block_rows = channels / rows, blocks = values.size(0);
  STD_TORCH_CHECK(channels % rows == 0, args.op(), ": scale_b has ", channels, " elements, accepted are multiples of ",
                  rows);
  const Tensor kept_values = in_order(values);
  SparseWeights weights = {static_cast<const int8_t*>(kept_values.const_data_ptr()), nullptr, nullptr, rows, channels,
                           a.size(1) / 4 * kernel_size[0] * kernel_size[1],          blocks};
  weights.columns = args.vector<int32_t>("columns", columns, ScalarType::Int, blocks);
  weights.row_offsets = args.vector<int32_t>("row_offsets", row_offsets, ScalarType::Int, block_rows + 1);
  check_indices(args.op(), weights);

  Epilogue epilogue = make_epilogue(
      args, {colsum, scale_a, scale_b, zero_point, bias, activation, out_dtype, scale_out, zero_point_out}, n, channels,
      4 * weights.depth4, is_signed);
  const Tensor nhwc = in_nhwc(a);
  Input in = make_input(args, nhwc, {stride, padding, dilation}, kernel_size[0], kernel_size[1], 1);
  in.zero_point = epilogue.zero_point;
  in.zero_point_step = epilogue.zero_point_step;
  check_padding(args, in, is_signed);
  epilogue.rows_per_scale = in.oh * in.ow;
  Tensor out = empty_nhwc(n, channels, in.oh, in.ow, out_dtype);
  epilogue.out = out.mutable_data_ptr();
  Tensor kept_residual = out;
  set_residual(args, {residual, scale_residual, zero_point_residual}, out, epilogue, kept_residual);
  if (out.numel() == 0) return out;

  const Kernels& kernel = kernels();
  const int64_t panels = in.panels(), channel_blocks = (channels + kLanes - 1) / kLanes;
  int64_t parts = threads_for(static_cast<double>(panels) * static_cast<double>(cost(weights, channel_blocks)));
  parts = parts < panels * channel_blocks ? parts : panels * channel_blocks;
  run_parts(parts, [&](int64_t part) {
    const Scratch scratch(in.sparse_bytes(rows));
    kernel.sparse(in, weights, epilogue, first_task(weights, panels, channel_blocks, part, parts),
                  first_task(weights, panels, channel_blocks, part + 1, parts), scratch.data());
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torchaccel, CPU, m) { m.impl("sparse_int8_conv2d", TORCH_BOX(&sparse_int8_conv2d)); }

}  // namespace torchaccel
