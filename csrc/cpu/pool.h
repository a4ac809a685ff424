// What the pooling ops share: the windows over an NHWC tensor.
#pragma once

#include "arguments.h"

namespace torchaccel {

struct Windows {
  const std::vector<int64_t>&kernel_size, &stride, &padding, &dilation;
  bool ceil_mode;
};

// The windows over `a` [N, C, H, W], channels_last, by the rules of torchaccel/ops/_pool.py.
Input make_windows(Arguments& args, const Tensor& a, const Windows& windows);

}  // namespace torchaccel
