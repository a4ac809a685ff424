// pack_int8: [groups][ceil(N / 16)][ceil(K / 4)][16][4], so that a vector of 16 output channels by 4 inputs is one
// load.
#include <torch/csrc/stable/library.h>

#include <cstring>

#include "pack.h"

namespace torchaccel {
namespace {

struct Sizes {
  int64_t groups, group_channels, blocks, depth, depth4;
  int64_t bytes() const { return groups * blocks * depth4 * 64; }
};

Sizes sizes_of(const Tensor& b, int64_t groups) {
  Sizes s = {groups, b.size(0) / groups, 0, 1, 0};
  for (int64_t i = 1; i < b.dim(); ++i) s.depth *= b.size(i);
  s.blocks = (s.group_channels + kLanes - 1) / kLanes;
  s.depth4 = (s.depth + 3) / 4;
  return s;
}

Tensor pack_int8(const Tensor& b, int64_t groups) {
  check_dtype("pack_int8", "b", b.scalar_type(), {ScalarType::Char});
  STD_TORCH_CHECK(b.dim() == 2 && groups > 0 && b.size(0) % groups == 0, "pack_int8: b has shape ", shape_of(b),
                  " with groups=", groups, ", accepted is [N, K] with N a multiple of groups");
  return pack_weights(b, groups);
}

}  // namespace

Tensor pack_weights(const Tensor& b, int64_t groups) {
  const Sizes s = sizes_of(b, groups);
  const int64_t shape[] = {groups, s.blocks, s.depth4, kLanes, 4};
  Tensor out = torch::stable::new_empty(b, {shape, 5}, ScalarType::Char);
  int8_t* to = static_cast<int8_t*>(out.mutable_data_ptr());
  if (s.bytes() == 0) return out;
  std::memset(to, 0, static_cast<size_t>(s.bytes()));
  const int8_t* from = static_cast<const int8_t*>(b.const_data_ptr());
  const bool conv = b.dim() == 4;
  const int64_t channels = b.size(1), kh = conv ? b.size(2) : 1, kw = conv ? b.size(3) : 1;
  const int64_t stride_n = b.stride(0), stride_c = b.stride(1);
  const int64_t stride_h = conv ? b.stride(2) : 0, stride_w = conv ? b.stride(3) : 0;
  for (int64_t n = 0; n < b.size(0); ++n) {
    const int64_t group = n / s.group_channels, channel = n % s.group_channels;
    int8_t* row = to + (group * s.blocks + channel / kLanes) * s.depth4 * 64 + channel % kLanes * 4;
    int64_t k = 0;
    for (int64_t y = 0; y < kh; ++y) {
      for (int64_t x = 0; x < kw; ++x) {
        const int8_t* tap = from + n * stride_n + y * stride_h + x * stride_w;
        for (int64_t c = 0; c < channels; ++c, ++k) row[k / 4 * 64 + k % 4] = tap[c * stride_c];
      }
    }
  }
  return out;
}

DenseWeights dense_weights(Arguments& args, const Tensor& b, int64_t groups, const OptionalTensor& packed,
                           Tensor& kept) {
  const Sizes s = sizes_of(b, groups);
  if (packed.has_value()) {
    check_dtype(args.op(), "packed", packed->scalar_type(), {ScalarType::Char});
    check_device(args.op(), "packed", *packed, b);
    STD_TORCH_CHECK(packed->numel() == s.bytes() && packed->is_contiguous(), args.op(), ": packed has shape ",
                    shape_of(*packed), ", accepted is what pack_int8 returned for this b");
    kept = *packed;
  } else {
    kept = pack_weights(b, groups);
  }
  return {static_cast<const int8_t*>(kept.const_data_ptr()), groups, s.group_channels};
}

STABLE_TORCH_LIBRARY_IMPL(torchaccel, CPU, m) { m.impl("pack_int8", TORCH_BOX(&pack_int8)); }

}  // namespace torchaccel
