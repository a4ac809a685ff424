// int8_max_pool2d and int8_avg_pool2d: pooling of NHWC activations. Free of torch headers.
//
// An item is kWidth neighbouring channels of one output pixel, read as one load from each pixel of its window; the
// items of a warp are neighbours in memory. A thread takes an item; of a large window, such as a whole image, kSplit
// threads take an item together and add their sums through shared memory, so that one image keeps a GPU busy.
// Memory-bound: every pixel once from DRAM, what windows share from L1 and L2. Indices are 32-bit within a launch,
// which covers as many images as fit; addresses are 64-bit. int32 sums are exact, in whatever order.
#pragma once

#include "epilogue.cuh"
#include "launch.cuh"
#include "operand.cuh"
#include "ptx.cuh"

namespace torchaccel::cuda {

constexpr int kPoolThreads = 256;
constexpr int kPoolSplit = 8;
constexpr int kLargeWindow = 16;  // pixels from which on threads share a window

// [n, height, width, channels] under windows; a launch sees only some of the images.
struct Pool {
  const void* data;
  int64_t images;
  int height, width, channels;
  int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int out_height, out_width;
};

// A launch: how its items are numbered, the channels first.
struct PoolItems {
  uint32_t count;
  Divider by_groups, by_width, by_height;
};

// Where an item lies, and the rows [y, y_end) and columns [x, x_end) of the input that its window covers.
struct PoolItem {
  int image, out_y, out_x, channel;
  int pixel;  // of the output, within the launch
  int y, y_end, x, x_end;
};

// From the first of the places `step` apart, from `start` on, that is at least 0.
__device__ inline int first_inside(int start, int step) {
  return start >= 0 ? start : start + (-start + step - 1) / step * step;
}

__device__ inline PoolItem pool_item(const Pool& p, const PoolItems& items, uint32_t index, int width) {
  PoolItem item;
  item.pixel = items.by_groups.divide(static_cast<int>(index));
  item.channel = (static_cast<int>(index) - item.pixel * static_cast<int>(items.by_groups.divisor)) * width;
  const int row = items.by_width.divide(item.pixel);
  item.out_x = item.pixel - row * p.out_width;
  item.image = items.by_height.divide(row);
  item.out_y = row - item.image * p.out_height;
  const int y = item.out_y * p.stride_h - p.pad_h, x = item.out_x * p.stride_w - p.pad_w;
  item.y = first_inside(y, p.dilation_h);
  item.x = first_inside(x, p.dilation_w);
  item.y_end = min(y + (p.kernel_h - 1) * p.dilation_h + 1, p.height);
  item.x_end = min(x + (p.kernel_w - 1) * p.dilation_w + 1, p.width);
  return item;
}

// The item's channels of pixel (0, 0) of its image.
template <typename T>
__device__ inline const T* pool_data(const Pool& p, const PoolItem& item) {
  return static_cast<const T*>(p.data) + static_cast<int64_t>(item.image) * p.height * p.width * p.channels +
         item.channel;
}

template <typename T, int kWidth>
__device__ inline Pack<T, kWidth> pool_load(const Pool& p, const T* data, int y, int x) {
  return *reinterpret_cast<const Pack<T, kWidth>*>(data + (static_cast<int64_t>(y) * p.width + x) * p.channels);
}

// out: [images, out_height, out_width, channels].
template <typename T, int kWidth>
__global__ void __launch_bounds__(kPoolThreads) max_pool_kernel(Pool p, PoolItems items, T* out) {
  const uint32_t index = blockIdx.x * kPoolThreads + threadIdx.x;
  if (index >= items.count) return;
  const PoolItem item = pool_item(p, items, index, kWidth);
  const T* data = pool_data<T>(p, item);
  int best[kWidth];
#pragma unroll
  for (int i = 0; i < kWidth; ++i) best[i] = static_cast<int>(Limits<T>::kLow);
  for (int y = item.y; y < item.y_end; y += p.dilation_h) {
    for (int x = item.x; x < item.x_end; x += p.dilation_w) {
      const Pack<T, kWidth> pack = pool_load<T, kWidth>(p, data, y, x);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) best[i] = max(best[i], static_cast<int>(pack.values[i]));
    }
  }
  Pack<T, kWidth> pack;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) pack.values[i] = static_cast<T>(best[i]);
  store(out, static_cast<int64_t>(item.pixel) * p.channels + item.channel, true, kWidth, pack);
}

// y = float(sum - zero_point * pixels) * (scale * (1 / count)), as the epilogue computes it: the pixels of the window
// take the place of a weight's column sum, 1 / count that of its scale.
template <typename T, int kWidth, int kSplit>
__global__ void __launch_bounds__(kPoolThreads)
    avg_pool_kernel(Pool p, PoolItems items, bool include_padding, Epilogue e) {
  constexpr int kItems = kPoolThreads / kSplit;
  const int lane = threadIdx.x % kItems, split = threadIdx.x / kItems;
  const uint32_t index = blockIdx.x * kItems + lane;
  PoolItem item = {};
  int32_t sums[kWidth] = {};
  if (index < items.count) {
    item = pool_item(p, items, index, kWidth);
    const T* data = pool_data<T>(p, item);
    const int columns = item.x_end - item.x;
    int y = item.y + split / columns, x = item.x + split % columns;
    while (y < item.y_end) {
      const Pack<T, kWidth> pack = pool_load<T, kWidth>(p, data, y, x);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) sums[i] += pack.values[i];
      for (x += kSplit; x >= item.x_end; x -= columns) ++y;
    }
  }
  if constexpr (kSplit > 1) {
    auto* shared = reinterpret_cast<int32_t*>(ptx::shared_memory());  // [kSplit][kWidth][kItems]
#pragma unroll
    for (int i = 0; i < kWidth; ++i) shared[(split * kWidth + i) * kItems + lane] = sums[i];
    __syncthreads();
    if (split != 0) return;
    for (int s = 1; s < kSplit; ++s) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) sums[i] += shared[(s * kWidth + i) * kItems + lane];
    }
  }
  if (index >= items.count) return;
  const int pixels = (item.y_end - item.y) * (item.x_end - item.x);
  int count = pixels;
  if (include_padding) {  // what hangs over the padding's edge never counts
    const int y = item.out_y * p.stride_h - p.pad_h, x = item.out_x * p.stride_w - p.pad_w;
    count = (min(y + p.kernel_h, p.height + p.pad_h) - y) * (min(x + p.kernel_w, p.width + p.pad_w) - x);
  }
  ChannelTerms<kWidth> c;
  c.channel = item.channel;
  c.count = kWidth;
  c.whole = e.wide;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    c.scale[i] = __frcp_rn(static_cast<float>(count));
    c.bias[i] = 0.0f;
    c.colsum[i] = pixels;
  }
  finish(e, sums, item.pixel, c);
}

// Calls run(part of p, its items, first image) for as many images at a time as 32-bit indices hold.
template <typename Run>
void for_images(const Pool& p, int width, int64_t element, const Run& run) {
  const int64_t groups = p.channels / width, items = groups * p.out_height * p.out_width;
  const int64_t most = ((int64_t{1} << 31) - 2 * kPoolThreads) / items;
  for (int64_t first = 0; first < p.images; first += most) {
    Pool part = p;
    part.images = p.images - first < most ? p.images - first : most;
    part.data = static_cast<const uint8_t*>(p.data) + first * p.height * p.width * p.channels * element;
    run(part,
        PoolItems{static_cast<uint32_t>(part.images * items), Divider(static_cast<uint32_t>(groups)),
                  Divider(static_cast<uint32_t>(p.out_width)), Divider(static_cast<uint32_t>(p.out_height))},
        first);
  }
}

// The widest loads that the channels and the addresses allow.
inline int pool_width(const Pool& p, const void* out, bool large) {
  const auto fits = [&](int width) {
    return p.channels % width == 0 && aligned(p.data, width) && (out == nullptr || aligned(out, width));
  };
  return fits(16) && !large ? 16 : fits(4) ? 4 : 1;
}

template <typename T>
void max_pool(const Pool& p, T* out, cudaStream_t stream) {
  const int width = pool_width(p, out, false);
  for_images(p, width, 1, [&](const Pool& part, const PoolItems& items, int64_t first) {
    T* to = out + first * p.out_height * p.out_width * p.channels;
    auto* kernel = width == 16 ? max_pool_kernel<T, 16> : width == 4 ? max_pool_kernel<T, 4> : max_pool_kernel<T, 1>;
    launch(kernel, ceil_div(items.count, kPoolThreads), kPoolThreads, 0, stream, part, items, to);
  });
}

// e: scale_a, zero_point and the output; out_bytes of an element. The rest is set here.
template <typename T>
void avg_pool(const Pool& p, bool include_padding, Epilogue e, int out_bytes, cudaStream_t stream) {
  const bool large = static_cast<int64_t>(p.kernel_h) * p.kernel_w >= kLargeWindow;
  const int width = pool_width(p, nullptr, large);
  e.channels = p.channels;
  e.wide = aligned(e.out, std::min(16, width * out_bytes));
  auto* const out = static_cast<uint8_t*>(e.out);
  for_images(p, width, 1, [&](const Pool& part, const PoolItems& items, int64_t first) {
    e.out = out + first * p.out_height * p.out_width * p.channels * out_bytes;
    if (large) {
      auto* kernel = width == 4 ? avg_pool_kernel<T, 4, kPoolSplit> : avg_pool_kernel<T, 1, kPoolSplit>;
      launch(kernel, ceil_div(items.count, kPoolThreads / kPoolSplit), kPoolThreads,
             kPoolThreads * width * static_cast<int>(sizeof(int32_t)), stream, part, items, include_padding, e);
    } else {
      auto* kernel = width == 16  ? avg_pool_kernel<T, 16, 1>
                     : width == 4 ? avg_pool_kernel<T, 4, 1>
                                  : avg_pool_kernel<T, 1, 1>;
      launch(kernel, ceil_div(items.count, kPoolThreads), kPoolThreads, 0, stream, part, items, include_padding, e);
    }
  });
}

}  // namespace torchaccel::cuda
