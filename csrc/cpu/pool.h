// What the pooling ops share.
#pragma once

#include "../common/windows.h"
#include "kernels.h"

namespace torchaccel {

// The windows over `a` [N, C, H, W], channels_last, for the inner loops.
Input windows_over(const Tensor& a, const Windows& windows, const WindowGrid& grid);

}  // namespace torchaccel
