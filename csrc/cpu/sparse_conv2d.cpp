// sparse_conv2d in float32: checks, and shares of equal cost for the threads; see sparse_f32.inl.
#include <torch/csrc/stable/library.h>

#include <atomic>

#include "isa.h"
#include "pack_sparse_f32.h"
#include "parallel.h"

namespace torchaccel {
namespace {

// Estimated cycles of one tile's slabs [0, slab): of a step's four rows, and of what each row costs besides.
int64_t cost(const SparseF32& w, int64_t slab) {
  const int64_t rows = slab * kSlabRows < w.channels ? slab * kSlabRows : w.channels;
  return 20 * w.first_step(slab) + 15 * rows * w.chunks();
}

// The first task (tile * slabs + slab) of thread `part` of `parts`, so that all have about the same cost.
int64_t first_task(const SparseF32& w, const ImageF32& image, int64_t part, int64_t parts) {
  const int64_t slabs = w.slabs(), last = image.tiles() - 1;
  if (part == parts) return (last + 1) * slabs;
  // The last tile has fewer vectors; a step costs a vector more than it computes.
  const int64_t left = image.in.rows() - last * image.tile_pixels();
  const int64_t share = 100 * ((left + 15) / 16 + 1) / (image.tile_pixels() / 16 + 1);
  const int64_t each = 100 * cost(w, slabs);
  const int64_t target = (last * each + share * cost(w, slabs)) / parts * part;
  const int64_t tile = target / each < last ? target / each : last;
  int64_t slab = 0;
  while (slab < slabs && (tile < last ? 100 : share) * cost(w, slab) < target - tile * each) ++slab;
  return tile * slabs + slab;
}

// A 1x1 kernel that reads each pixel once: images are rows of pixels.
void flatten(Input& in) {
  if (in.kh * in.kw != 1 || in.stride_h * in.stride_w != 1 || in.pad_h != 0 || in.pad_w != 0) return;
  in.w *= in.h, in.ow *= in.oh;
  in.h = in.oh = 1;
}

// The last two arguments are the tiles that the CUDA kernel skips.
Tensor sparse_conv2d(const Tensor& x, const Tensor& values, const Tensor& columns, const Tensor& row_offsets,
                     const OptionalTensor& bias, const OptionalTensor& residual,
                     const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
                     const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                     const std::string& activation, const OptionalTensor& packed, const OptionalTensor&,
                     const OptionalTensor&) {
  Arguments args("sparse_conv2d", x);
  check_dtype(args.op(), "x", x.scalar_type(), {ScalarType::Float});
  check_dtype(args.op(), "values", values.scalar_type(), {ScalarType::Float});
  check_device(args.op(), "values", values, x);
  STD_TORCH_CHECK(x.dim() == 4, args.op(), ": x has shape ", shape_of(x), ", accepted is [N, C, H, W]");
  STD_TORCH_CHECK(values.dim() == 3 && row_offsets.numel() > 0, args.op(), ": values has shape ", shape_of(values),
                  ", accepted is [blocks, rows, columns]");
  check_pair(args.op(), "kernel_size", kernel_size, 1);
  const int64_t channels = (row_offsets.numel() - 1) * values.size(1);
  const int64_t depth = x.size(1) * kernel_size[0] * kernel_size[1];
  if (packed.has_value()) args.same_device("packed", *packed);
  const Tensor kept_packed = packed.has_value() ? *packed : pack_sparse_f32(values, columns, row_offsets, depth);
  const SparseF32 weights = sparse_f32_of(args.op(), kept_packed, channels, depth);

  const bool channels_last = !x.is_contiguous() && is_nhwc(x);
  const Tensor kept_x = channels_last ? x : in_order(x);
  ImageF32 image = {make_input(args, kept_x, {stride, padding, dilation}, kernel_size[0], kernel_size[1], 1),
                    channels_last};
  image.in.c *= 4, image.in.group_channels *= 4;
  image.in.flip = 0;
  const int64_t sizes[] = {x.size(0), channels, image.in.oh, image.in.ow};
  Tensor out = channels_last ? empty_nhwc(sizes[0], sizes[1], sizes[2], sizes[3], ScalarType::Float)
                             : torch::stable::new_empty(x, {sizes, 4});
  OutputF32 output = {static_cast<float*>(out.mutable_data_ptr()),
                      nullptr,
                      nullptr,
                      activation_of(args.op(), activation),
                      channels_last,
                      channels,
                      image.in.oh * image.in.ow};
  output.bias = args.vector<float>("bias", bias, ScalarType::Float, channels);
  Tensor kept_residual = out;
  if (residual.has_value()) {
    check_dtype(args.op(), "residual", residual->scalar_type(), {ScalarType::Float});
    args.same_device("residual", *residual);
    STD_TORCH_CHECK(shape_of(*residual) == shape_of(out), args.op(), ": residual has shape ", shape_of(*residual),
                    ", accepted is ", shape_of(out));
    kept_residual = in_layout(*residual, out);
    output.residual = static_cast<const float*>(kept_residual.const_data_ptr());
  }
  if (out.numel() == 0) return out;

  flatten(image.in);
  const Kernels& kernel = kernels();
  const int64_t tiles = image.tiles(), tasks = tiles * weights.slabs();
  int64_t parts = threads_for(static_cast<double>(tiles) * static_cast<double>(cost(weights, weights.slabs())));
  parts = parts < tasks ? parts : tasks;
  std::atomic<bool> valid = true;
  run_parts(parts, [&](int64_t part) {
    const int64_t begin = first_task(weights, image, part, parts), end = first_task(weights, image, part + 1, parts);
    // Each thread checks what it is about to read, which brings it into its cache.
    const int64_t slabs = weights.slabs(), slab = begin % slabs;
    const bool some = slab + (end - begin) <= slabs;
    if (kernel.sparse_f32_valid(weights, some ? slab : 0, some ? slab + (end - begin) : slabs)) {
      const Scratch scratch(sparse_f32_bytes(weights));
      kernel.sparse_f32(image, weights, output, begin, end, scratch.data());
    } else {
      valid = false;
    }
  });
  check_packed(args.op(), kept_packed, valid);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torchaccel, CPU, m) { m.impl("sparse_conv2d", TORCH_BOX(&sparse_conv2d)); }

}  // namespace torchaccel
