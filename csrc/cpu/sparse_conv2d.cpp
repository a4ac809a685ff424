// sparse_conv2d in float32: checks, and the threads' shares; see sparse_f32.inl.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "isa.h"
#include "pack_sparse_f32.h"
#include "parallel.h"

namespace torchaccel {
namespace {

// Threads as a grid of shares: of the output pixels, and of the slabs.
struct Grid {
  int64_t pixels, slabs;
};

// Estimated cycles of a share: of a step's four rows, of what each row costs besides, and of filling the panel.
int64_t cost(const SparseF32& w, const ShareF32& share) {
  const int64_t end = share.last_slab * kSlabRows < w.channels ? share.last_slab * kSlabRows : w.channels;
  const int64_t rows = (end - share.first_slab * kSlabRows) * w.chunks();
  const int64_t steps = w.first_step(share.last_slab) - w.first_step(share.first_slab);
  const int64_t vectors = share.vectors(), tiles = share.tiles();
  return 3 * steps * (vectors + tiles) + 2 * rows * (vectors + tiles) + 4 * w.depth * vectors;
}

// The first slab of share `part` of `parts`, so that all have about as many nonzeros.
int64_t first_slab(const SparseF32& w, int64_t part, int64_t parts) {
  if (part == parts) return w.slabs();
  const int64_t first = w.first_step(0), twice = 2 * (first + (w.steps - first) * part / parts);
  int64_t slab = 0;
  while (slab < w.slabs() && w.first_step(slab) + w.first_step(slab + 1) < twice) ++slab;
  return slab;
}

ShareF32 share_of(const SparseF32& w, int64_t vectors, const Grid& grid, int64_t part) {
  const int64_t pixel = part / grid.slabs, slab = part % grid.slabs;
  return {vectors * pixel / grid.pixels, vectors * (pixel + 1) / grid.pixels, first_slab(w, slab, grid.slabs),
          first_slab(w, slab + 1, grid.slabs)};
}

// The grid of at most `parts` whose largest share costs least.
Grid grid_of(const SparseF32& w, int64_t vectors, int64_t parts) {
  Grid best = {1, 1};
  int64_t least = INT64_MAX;
  for (int64_t slabs = 1; slabs <= w.slabs() && slabs <= parts; ++slabs) {
    const Grid grid = {parts / slabs < vectors ? parts / slabs : vectors, slabs};
    int64_t most = 0;
    for (int64_t slab = 0; slab < slabs; ++slab) {
      most = std::max(most, cost(w, share_of(w, vectors, grid, (grid.pixels - 1) * slabs + slab)));
    }
    if (most < least) best = grid, least = most;
  }
  return best;
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
                      image.in.oh * image.in.ow,
                      4 * (x.numel() + out.numel()) > kStreamBytes};
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
  const int64_t vectors = (image.in.rows() + 15) / 16;
  const double all = static_cast<double>(cost(weights, {0, vectors, 0, weights.slabs()}));
  const Grid grid = grid_of(weights, vectors, threads_for(all));
  std::atomic<bool> valid = true;
  run_parts(grid.pixels * grid.slabs, [&](int64_t part) {
    const ShareF32 share = share_of(weights, vectors, grid, part);
    // Each thread checks what it is about to read, which brings it into its cache.
    if (kernel.sparse_f32_valid(weights, share.first_slab, share.last_slab)) {
      const Scratch scratch(sparse_f32_bytes(weights));
      kernel.sparse_f32(image, weights, output, share, scratch.data());
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
