// The CUDA kernels of int8 pooling and addition, compiled for the CPU, behind C functions for ctypes.
#include "pool_int8.cuh"

#include "add_int8.cuh"

using namespace torchaccel::cuda;

namespace {

// g: images, height, width, channels, then kernel, stride, padding, dilation and output size, (height, width) each.
Pool pool_of(const void* data, const int64_t* g) {
  Pool p = {};
  p.data = data;
  p.images = g[0];
  int* const rest[] = {&p.height, &p.width, &p.channels,   &p.kernel_h,   &p.kernel_w,   &p.stride_h, &p.stride_w,
                       &p.pad_h,  &p.pad_w, &p.dilation_h, &p.dilation_w, &p.out_height, &p.out_width};
  for (int i = 0; i < 13; ++i) *rest[i] = static_cast<int>(g[1 + i]);
  return p;
}

int bytes_of(Type type) { return type == Type::kFloat32 ? 4 : type == Type::kInt8 || type == Type::kUint8 ? 1 : 2; }

}  // namespace

extern "C" void max_pool_int8(char type, const void* a, void* out, const int64_t* geometry) {
  const Pool p = pool_of(a, geometry);
  if (type == 's') return max_pool(p, static_cast<int8_t*>(out), nullptr);
  max_pool(p, static_cast<uint8_t*>(out), nullptr);
}

extern "C" void avg_pool_int8(char type, const void* a, void* out, const int64_t* geometry, int64_t include_padding,
                              int64_t out_type, const float* scale, const int32_t* zero_point, const float* scale_out,
                              const int32_t* zero_point_out) {
  Epilogue e;
  e.scale_a = scale;
  e.zero_point = zero_point;
  e.out = out;
  e.out_type = static_cast<Type>(out_type);
  e.scale_out = scale_out;
  e.zero_point_out = zero_point_out;
  const Pool p = pool_of(a, geometry);
  const int bytes = bytes_of(e.out_type);
  if (type == 's') return avg_pool<int8_t>(p, include_padding != 0, e, bytes, nullptr);
  avg_pool<uint8_t>(p, include_padding != 0, e, bytes, nullptr);
}

extern "C" void add_int8(const void* a, int64_t a_type, const void* b, int64_t b_type, void* out, int64_t out_type,
                         int64_t n, const float* scale_a, const int32_t* zero_point_a, const float* scale_b,
                         const int32_t* zero_point_b, int64_t activation, const float* scale_out,
                         const int32_t* zero_point_out) {
  Epilogue e;
  e.scale_a = scale_a;
  e.zero_point = zero_point_a;
  e.residual = b;
  e.residual_type = static_cast<Type>(b_type);
  e.scale_residual = scale_b;
  e.zero_point_residual = zero_point_b;
  e.activation = static_cast<Activation>(activation);
  e.out = out;
  e.out_type = static_cast<Type>(out_type);
  e.scale_out = scale_out;
  e.zero_point_out = zero_point_out;
  add(static_cast<Type>(a_type), a, n, e, nullptr);
}

// Of `images` with `channels` at each of height x width pixels, input and output alike. out: launches, the most items
// of one, and the images that the launches take one after the other, each from where its input lies.
extern "C" void pool_plan(int64_t images, int64_t height, int64_t width, int64_t channels, int64_t* out) {
  Pool p = {};
  p.images = images;
  p.channels = static_cast<int>(channels);
  p.height = p.out_height = static_cast<int>(height);
  p.width = p.out_width = static_cast<int>(width);
  int64_t launches = 0, most = 0, seen = 0;
  for_images(p, 1, 1, [&](const Pool& part, const PoolItems& items, int64_t first) {
    ++launches;
    most = std::max<int64_t>(most, items.count);
    const auto at = static_cast<int64_t>(reinterpret_cast<uintptr_t>(part.data));
    if (first == seen && at == first * height * width * channels) seen += part.images;
  });
  out[0] = launches, out[1] = most, out[2] = seen;
}
