// The windows of a pooling op, by the rules of torchaccel/ops/_pool.py; for the CPU and CUDA kernels.
#pragma once

#include "check.h"

namespace torchaccel {

struct Windows {
  const std::vector<int64_t>&kernel_size, &stride, &padding, &dilation;
  bool ceil_mode;
};

// Windows along one side. With ceil_mode the last one may hang over the edge, if it starts inside the input or the
// padding before it.
inline int64_t window_count(int64_t size, int64_t span, int64_t stride, int64_t padding, bool ceil_mode) {
  const int64_t room = size + 2 * padding - span + (ceil_mode ? stride - 1 : 0);
  if (room < 0) return 0;
  const int64_t count = room / stride + 1;
  return ceil_mode && (count - 1) * stride >= size + padding ? count - 1 : count;
}

struct WindowGrid {
  int64_t height, width;
};

// Checks the input `a` and its windows; returns how many there are along each side.
inline WindowGrid check_windows(const char* op, const Tensor& a, const Windows& w) {
  check_dtype(op, "a", a.scalar_type(), {ScalarType::Char, ScalarType::Byte});
  STD_TORCH_CHECK(a.dim() == 4, op, ": a has shape ", shape_of(a), ", accepted is [N, C, H, W]");
  check_pair(op, "kernel_size", w.kernel_size, 1);
  check_pair(op, "stride", w.stride, 1);
  check_pair(op, "padding", w.padding, 0);
  check_pair(op, "dilation", w.dilation, 1);
  constexpr int64_t kMost = int64_t{1} << 30;  // of a window's extent, so that places fit int32
  int64_t counts[2];
  for (int i = 0; i < 2; ++i) {
    const int64_t kernel = w.kernel_size[i], size = a.size(2 + i);
    STD_TORCH_CHECK(2 * w.padding[i] <= kernel, op, ": padding is ", w.padding[i],
                    ", accepted is at most half of the kernel size ", kernel);
    STD_TORCH_CHECK(kernel <= kMost && w.dilation[i] <= kMost / kernel && w.stride[i] <= kMost && size <= kMost, op,
                    ": a window of ", kernel, " with dilation ", w.dilation[i], " and stride ", w.stride[i], " over ",
                    size, " is more than one call takes");
    counts[i] = window_count(size, w.dilation[i] * (kernel - 1) + 1, w.stride[i], w.padding[i], w.ceil_mode);
    STD_TORCH_CHECK(counts[i] > 0, op, ": a window of ", kernel, " with dilation ", w.dilation[i],
                    " does not fit an input of ", size);
  }
  return {counts[0], counts[1]};
}

// The same for averages, whose sums int32 must hold.
inline WindowGrid check_averages(const char* op, const Tensor& a, const Windows& w) {
  const WindowGrid grid = check_windows(op, a, w);
  constexpr int64_t kMostPixels = 2147483647 / 255;
  const int64_t rows = w.kernel_size[0], columns = w.kernel_size[1];
  STD_TORCH_CHECK(rows <= kMostPixels / columns, op, ": kernel_size is (", rows, ", ", columns,
                  "), accepted are at most ", kMostPixels, " pixels");
  return grid;
}

}  // namespace torchaccel
