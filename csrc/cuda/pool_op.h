// From a pooling op's tensors to the plain structs of pool_int8.cuh.
#pragma once

#include "../common/windows.h"
#include "pool_int8.cuh"
#include "product_op.h"

namespace torchaccel::cuda {

// The windows over `a` [N, C, H, W], channels_last; 32-bit indices must hold one image.
inline Pool pool_of(const char* op, const Tensor& a, const Windows& w, const WindowGrid& grid) {
  const int64_t outputs = grid.height * grid.width, channels = a.size(1);
  constexpr int64_t kMost = (int64_t{1} << 31) - 1024;
  STD_TORCH_CHECK(outputs < kMost && (outputs == 0 || channels < kMost / outputs), op, ": ", outputs,
                  " output pixels of ", channels, " channels in one image are more than one call takes");
  Pool p = {};
  p.data = a.data_ptr();
  p.images = a.size(0);
  p.height = static_cast<int>(a.size(2)), p.width = static_cast<int>(a.size(3)),
  p.channels = static_cast<int>(channels);
  p.kernel_h = static_cast<int>(w.kernel_size[0]), p.kernel_w = static_cast<int>(w.kernel_size[1]);
  p.stride_h = static_cast<int>(w.stride[0]), p.stride_w = static_cast<int>(w.stride[1]);
  p.pad_h = static_cast<int>(w.padding[0]), p.pad_w = static_cast<int>(w.padding[1]);
  p.dilation_h = static_cast<int>(w.dilation[0]), p.dilation_w = static_cast<int>(w.dilation[1]);
  p.out_height = static_cast<int>(grid.height), p.out_width = static_cast<int>(grid.width);
  return p;
}

}  // namespace torchaccel::cuda
