// What turns a product's sums into its output, to the bit of torchaccel/ops/_epilogue.py. Free of torch headers.
//
//   y = float(sum - zero_point * colsum) * (scale_a * scale_b) + bias + residual, the activation, then the output type.
// Types and activations are chosen at run time: the branches are the same for all threads, and one kernel serves all.
#pragma once

#include "numerics.cuh"

namespace torchaccel::cuda {

enum class Type : int { kFloat32, kFloat16, kBFloat16, kInt8, kUint8 };
enum class Activation : int { kNone, kRelu, kRelu6, kGelu, kSilu };

struct Epilogue {
  const int32_t* colsum = nullptr;      // [channels]; with zero_point
  const int32_t* zero_point = nullptr;  // one for each `zero_rows` rows; null is 0
  const float* scale_a = nullptr;       // one for each `scale_rows` rows; null is 1
  const float* scale_b = nullptr;       // [channels]; null is 1
  int zero_rows = 0, scale_rows = 0;    // 0: one for all rows
  const void* bias = nullptr;           // [channels] or null
  Type bias_type = Type::kFloat32;
  const void* residual = nullptr;  // [rows, channels] or null
  Type residual_type = Type::kFloat32;
  const float* scale_residual = nullptr;         // [1], for an int8 residual
  const int32_t* zero_point_residual = nullptr;  // [1] or null
  Activation activation = Activation::kNone;
  void* out = nullptr;  // [rows, channels]
  Type out_type = Type::kFloat32;
  const float* scale_out = nullptr;         // [1], for an int8 output
  const int32_t* zero_point_out = nullptr;  // [1] or null
  int rows = 0, channels = 0;
  bool wide = false;  // every vector starts at a multiple of 16 bytes (8 for int8) and `channels` is a multiple of 8
};

// Element `index` and its kWidth - 1 followers, as floats; `whole`: one aligned load, else the first `count` one by
// one.
template <typename T, int kWidth>
__device__ inline void load(const void* from, int64_t index, bool whole, int count, float (&to)[kWidth]) {
  const T* source = static_cast<const T*>(from) + index;
  if (whole) {
    const auto pack = *reinterpret_cast<const Pack<T, kWidth>*>(source);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) to[i] = to_float(pack.values[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) to[i] = i < count ? to_float(source[i]) : 0.0f;
  }
}

template <int kWidth>
__device__ inline void load(Type type, const void* from, int64_t index, bool whole, int count, float (&to)[kWidth]) {
  switch (type) {
    case Type::kFloat32:
      return load<float>(from, index, whole, count, to);
    case Type::kFloat16:
      return load<__half>(from, index, whole, count, to);
    case Type::kBFloat16:
      return load<__nv_bfloat16>(from, index, whole, count, to);
    case Type::kInt8:
      return load<int8_t>(from, index, whole, count, to);
    case Type::kUint8:
      return load<uint8_t>(from, index, whole, count, to);
  }
}

template <typename T, int kWidth>
__device__ inline void store(void* to, int64_t index, bool whole, int count, const Pack<T, kWidth>& pack) {
  T* target = static_cast<T*>(to) + index;
  if (whole) {
    *reinterpret_cast<Pack<T, kWidth>*>(target) = pack;
  } else {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      if (i < count) target[i] = pack.values[i];
    }
  }
}

__device__ inline float activate(float y, Activation activation) {
  switch (activation) {
    case Activation::kNone:
      return y;
    case Activation::kRelu:
      return y < 0.0f ? 0.0f : y;  // keeps NaN
    case Activation::kRelu6:
      return y < 0.0f ? 0.0f : (y > 6.0f ? 6.0f : y);
    case Activation::kGelu:
      return 0.5f * y * (1.0f + erff(y * 0.70710678118654752f));
    case Activation::kSilu:
      return y / (1.0f + expf(-y));
  }
  return y;
}

// What the rows of one output channel share, for kWidth neighbouring channels.
template <int kWidth>
struct ChannelTerms {
  float scale[kWidth], bias[kWidth];
  int32_t colsum[kWidth];
  int channel, count;  // the first, and how many of the kWidth exist
  bool whole;          // all of them, at an aligned place
};

template <int kWidth>
__device__ inline ChannelTerms<kWidth> channel_terms(const Epilogue& e, int channel) {
  ChannelTerms<kWidth> c;
  c.channel = channel;
  c.count = min(kWidth, e.channels - channel);
  c.whole = e.wide && c.count == kWidth;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    c.scale[i] = 1.0f;
    c.bias[i] = 0.0f;
    c.colsum[i] = e.zero_point != nullptr && i < c.count ? e.colsum[channel + i] : 0;
  }
  if (e.scale_b != nullptr) load<float>(e.scale_b, channel, c.whole, c.count, c.scale);
  if (e.bias != nullptr) load(e.bias_type, e.bias, channel, c.whole, c.count, c.bias);
  return c;
}

// float(sum - zero_point * colsum), in int32 that wraps; float sums have no zero point.
__device__ inline float centred(int32_t sum, int32_t zero_point, int32_t colsum) {
  return static_cast<float>(static_cast<int32_t>(static_cast<uint32_t>(sum) -
                                                 static_cast<uint32_t>(zero_point) * static_cast<uint32_t>(colsum)));
}
__device__ inline float centred(float sum, int32_t, int32_t) { return sum; }

// Finishes and stores the sums of one row and the channels of `c`.
template <typename S, int kWidth>
__device__ inline void finish(const Epilogue& e, const S (&sums)[kWidth], int row, const ChannelTerms<kWidth>& c) {
  const auto group = [row](int rows) { return rows == 0 ? 0 : (rows == 1 ? row : row / rows); };
  const float scale_a = e.scale_a != nullptr ? e.scale_a[group(e.scale_rows)] : 1.0f;
  const int32_t zero_point = e.zero_point != nullptr ? e.zero_point[group(e.zero_rows)] : 0;
  const int64_t index = static_cast<int64_t>(row) * e.channels + c.channel;
  float y[kWidth];
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    y[i] = __fmul_rn(centred(sums[i], zero_point, c.colsum[i]), __fmul_rn(scale_a, c.scale[i]));
    if (e.bias != nullptr) y[i] = __fadd_rn(y[i], c.bias[i]);
  }
  if (e.residual != nullptr) {
    float residual[kWidth];
    load(e.residual_type, e.residual, index, c.whole, c.count, residual);
    const float offset = e.zero_point_residual != nullptr ? static_cast<float>(*e.zero_point_residual) : 0.0f;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      if (e.scale_residual != nullptr) residual[i] = __fmul_rn(residual[i] - offset, *e.scale_residual);
      y[i] = __fadd_rn(y[i], residual[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < kWidth; ++i) y[i] = activate(y[i], e.activation);

  const auto quantized = [&](auto low) {
    using Q = decltype(low);
    const float inverse = __frcp_rn(*e.scale_out);
    const float shift = e.zero_point_out != nullptr ? static_cast<float>(*e.zero_point_out) : 0.0f;
    Pack<Q, kWidth> pack;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) pack.values[i] = quantize<Q>(y[i], inverse, shift);
    store(e.out, index, c.whole, c.count, pack);
  };
  const auto converted = [&](auto zero) {
    using T = decltype(zero);
    Pack<T, kWidth> pack;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) pack.values[i] = from_float<T>(y[i]);
    store(e.out, index, c.whole, c.count, pack);
  };
  switch (e.out_type) {
    case Type::kFloat32:
      return converted(0.0f);
    case Type::kFloat16:
      return converted(__half{});
    case Type::kBFloat16:
      return converted(__nv_bfloat16{});
    case Type::kInt8:
      return quantized(int8_t{});
    case Type::kUint8:
      return quantized(uint8_t{});
  }
}

}  // namespace torchaccel::cuda
