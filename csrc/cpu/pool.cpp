#include "pool.h"

namespace torchaccel {

Input windows_over(const Tensor& a, const Windows& w, const WindowGrid& grid) {
  Input in = {};
  in.data = static_cast<const uint8_t*>(a.const_data_ptr());
  in.n = a.size(0), in.c = a.size(1), in.h = a.size(2), in.w = a.size(3);
  in.kh = w.kernel_size[0], in.kw = w.kernel_size[1];
  in.stride_h = w.stride[0], in.stride_w = w.stride[1];
  in.pad_h = w.padding[0], in.pad_w = w.padding[1];
  in.dilation_h = w.dilation[0], in.dilation_w = w.dilation[1];
  in.oh = grid.height, in.ow = grid.width;
  return in;
}

}  // namespace torchaccel
