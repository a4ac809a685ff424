#include "pool.h"

namespace torchaccel {
namespace {

// Windows along one side. With ceil_mode the last one may hang over the edge, if it starts inside the input or the
// padding before it.
int64_t window_count(int64_t size, int64_t span, int64_t stride, int64_t padding, bool ceil_mode) {
  const int64_t room = size + 2 * padding - span + (ceil_mode ? stride - 1 : 0);
  if (room < 0) return 0;
  const int64_t count = room / stride + 1;
  return ceil_mode && (count - 1) * stride >= size + padding ? count - 1 : count;
}

}  // namespace

Input make_windows(Arguments& args, const Tensor& a, const Windows& w) {
  check_pair(args.op(), "kernel_size", w.kernel_size, 1);
  check_pair(args.op(), "stride", w.stride, 1);
  check_pair(args.op(), "padding", w.padding, 0);
  check_pair(args.op(), "dilation", w.dilation, 1);
  Input in = {};
  in.data = static_cast<const uint8_t*>(a.const_data_ptr());
  in.n = a.size(0), in.c = a.size(1), in.h = a.size(2), in.w = a.size(3);
  in.kh = w.kernel_size[0], in.kw = w.kernel_size[1];
  in.stride_h = w.stride[0], in.stride_w = w.stride[1];
  in.pad_h = w.padding[0], in.pad_w = w.padding[1];
  in.dilation_h = w.dilation[0], in.dilation_w = w.dilation[1];
  STD_TORCH_CHECK(2 * in.pad_h <= in.kh && 2 * in.pad_w <= in.kw, args.op(), ": padding is (", in.pad_h, ", ", in.pad_w,
                  "), accepted is at most half of the kernel size (", in.kh, ", ", in.kw, ")");
  in.oh = window_count(in.h, in.dilation_h * (in.kh - 1) + 1, in.stride_h, in.pad_h, w.ceil_mode);
  in.ow = window_count(in.w, in.dilation_w * (in.kw - 1) + 1, in.stride_w, in.pad_w, w.ceil_mode);
  STD_TORCH_CHECK(in.oh > 0 && in.ow > 0, args.op(), ": a window of (", in.kh, ", ", in.kw, ") with dilation (",
                  in.dilation_h, ", ", in.dilation_w, ") does not fit an input of (", in.h, ", ", in.w, ")");
  return in;
}

}  // namespace torchaccel
