// From an op's tensors to the plain structs of products.cuh; what int8_linear and the convolutions share.
#pragma once

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "../common/check.h"
#include "op.h"
#include "products.cuh"

namespace torchaccel::cuda {

inline Type type_of(const char* op, const char* name, ScalarType dtype) {
  check_dtype(op, name, dtype,
              {ScalarType::Float, ScalarType::Half, ScalarType::BFloat16, ScalarType::Char, ScalarType::Byte});
  switch (dtype) {
    case ScalarType::Half:
      return Type::kFloat16;
    case ScalarType::BFloat16:
      return Type::kBFloat16;
    case ScalarType::Char:
      return Type::kInt8;
    case ScalarType::Byte:
      return Type::kUint8;
    default:
      return Type::kFloat32;
  }
}

inline bool is_int8(Type type) { return type == Type::kInt8 || type == Type::kUint8; }

inline int64_t size_of(Type type) { return is_int8(type) ? 1 : (type == Type::kFloat32 ? 4 : 2); }

inline Activation activation_of(const char* op, const std::string& name) {
  const char* names[] = {"none", "relu", "relu6", "gelu", "silu"};
  for (int i = 0; i < 5; ++i) {
    if (name == names[i]) return static_cast<Activation>(i);
  }
  STD_TORCH_CHECK(false, op, ": activation is '", name, "', accepted are none, relu, relu6, gelu, silu");
}

// int8 or uint8, and sums that int32 holds.
inline bool is_signed_int8(const char* op, ScalarType dtype, int64_t depth) {
  check_dtype(op, "a", dtype, {ScalarType::Char, ScalarType::Byte});
  const int64_t deepest = dtype == ScalarType::Char ? 131071 : 65793;
  STD_TORCH_CHECK(depth <= deepest, op, ": K=", depth, " could overflow int32; at most ", deepest, " is accepted");
  return dtype == ScalarType::Char;
}

// Rows, channels and bytes that 32-bit indices inside the kernels hold.
inline void check_range(const char* op, int64_t rows, int64_t channels, int64_t bytes_k) {
  constexpr int64_t kMost = (int64_t{1} << 31) - 1024;
  STD_TORCH_CHECK(
      rows < kMost && channels < kMost && bytes_k < kMost && ceil_div(rows, 16) * ceil_div(channels, 64) < kMost / 16,
      op, ": a product of ", rows, " rows by ", channels, " channels over ", bytes_k,
      " bytes is more than one call takes");
}

// A product of x [..., K] by b [N, K].
struct Sizes {
  int64_t m, n, k;
  std::vector<int64_t> out;  // [..., N]
};

inline Sizes linear_sizes(const char* op, const char* name, const Tensor& x, const Tensor& b) {
  STD_TORCH_CHECK(b.dim() == 2 && x.dim() > 0 && x.size(x.dim() - 1) == b.size(1), op, ": ", name, " has shape ",
                  shape_of(x), ", b has shape ", shape_of(b), "; accepted are [..., K] and [N, K]");
  Sizes size = {1, b.size(0), b.size(1), {x.sizes().begin(), x.sizes().end()}};
  size.out.back() = size.n;
  for (size_t i = 0; i + 1 < size.out.size(); ++i) size.m *= size.out[i];
  check_range(op, size.m, size.n, size.k * 4);
  return size;
}

// What all int8 ops take besides their operands; as in torchaccel/ops/_epilogue.py.
struct EpilogueTensors {
  const Tensor& colsum;
  const Tensor& scale_a;
  const Tensor& scale_b;
  const OptionalTensor& zero_point;
  const OptionalTensor& bias;
  const OptionalTensor& scale_out;
  const OptionalTensor& zero_point_out;
};

// The output and what comes before it, for `rows` of `channels`; `args` keeps what it had to copy.
inline Epilogue output_epilogue(Arguments& args, const Tensor& out, int64_t rows, int64_t channels,
                                const std::string& activation, const OptionalTensor& scale_out,
                                const OptionalTensor& zero_point_out) {
  Epilogue e;
  e.rows = static_cast<int>(rows);
  e.channels = static_cast<int>(channels);
  e.activation = activation_of(args.op(), activation);
  e.out = out.data_ptr();
  e.out_type = type_of(args.op(), "out_dtype", out.scalar_type());
  STD_TORCH_CHECK(is_int8(e.out_type) == scale_out.has_value(), args.op(), ": out_dtype is ",
                  name_of(out.scalar_type()), " with ", scale_out.has_value() ? "a" : "no",
                  " scale_out; int8 and uint8 need one, float types take none");
  e.scale_out = args.one<float>("scale_out", scale_out, ScalarType::Float);
  e.zero_point_out = args.one<int32_t>("zero_point_out", zero_point_out, ScalarType::Int);
  return e;
}

// `units` (rows of a matrix, images of a convolution) of `unit_rows` rows may each have a scale and a zero point.
inline Epilogue int8_epilogue(Arguments& args, const EpilogueTensors& t, const Tensor& out, int64_t units,
                              int64_t unit_rows, int64_t channels, const std::string& activation) {
  Epilogue e = output_epilogue(args, out, units * unit_rows, channels, activation, t.scale_out, t.zero_point_out);
  e.colsum = args.vector<int32_t>("colsum", t.colsum, ScalarType::Int, channels);
  e.scale_b = args.vector<float>("scale_b", t.scale_b, ScalarType::Float, channels);
  e.bias = args.vector<float>("bias", t.bias, ScalarType::Float, channels);
  e.scale_a = args.vector<float>("scale_a", t.scale_a, ScalarType::Float, 1, units);
  e.scale_rows = t.scale_a.numel() == 1 ? 0 : static_cast<int>(unit_rows);
  e.zero_point = args.vector<int32_t>("zero_point", t.zero_point, ScalarType::Int, 1, units);
  e.zero_rows = !t.zero_point || t.zero_point->numel() == 1 ? 0 : static_cast<int>(unit_rows);
  return e;
}

// Sets the residual of `out` [N, O, OH, OW]; returns what holds its memory.
inline OptionalTensor set_residual(Arguments& args, const OptionalTensor& residual, const OptionalTensor& scale,
                                   const OptionalTensor& zero_point, const Tensor& out, Epilogue& e) {
  if (!residual) return std::nullopt;
  e.residual_type = type_of(args.op(), "residual", residual->scalar_type());
  STD_TORCH_CHECK(is_int8(e.residual_type) == scale.has_value(), args.op(), ": residual is ",
                  name_of(residual->scalar_type()), scale ? " with" : " without",
                  " scale_residual; int8 and uint8 need one, float types take none");
  STD_TORCH_CHECK(shape_of(*residual) == shape_of(out), args.op(), ": residual has shape ", shape_of(*residual),
                  ", accepted is ", shape_of(out));
  check_device(args.op(), "residual", *residual, out);
  Tensor kept = in_nhwc(*residual);
  e.residual = kept.data_ptr();
  e.scale_residual = args.one<float>("scale_residual", scale, ScalarType::Float);
  e.zero_point_residual = args.one<int32_t>("zero_point_residual", zero_point, ScalarType::Int);
  return kept;
}

// Whether all vectors can be read eight elements at a time; called when the epilogue is complete.
inline bool is_wide(const Epilogue& e) {
  const auto fits = [](const void* pointer, int64_t size) {
    return aligned(pointer, static_cast<int>(std::min<int64_t>(16, 8 * size)));
  };
  return e.channels % 8 == 0 && fits(e.scale_b, 4) && fits(e.bias, size_of(e.bias_type)) &&
         fits(e.residual, size_of(e.residual_type)) && fits(e.out, size_of(e.out_type));
}

// The tiles of a weight [channels, bytes_k] as torchaccel/ops/_tiles.py packs them; `two_four` says which kind it
// found.
inline Weights packed_weights(Arguments& args, const OptionalTensor& packed, const OptionalTensor& columns,
                              const OptionalTensor& offsets, int64_t channels, int64_t bytes_k, int64_t element,
                              bool& two_four) {
  STD_TORCH_CHECK(
      packed.has_value() && packed->scalar_type() == ScalarType::Char && packed->is_contiguous() && packed->dim() >= 2,
      args.op(), ": packed is not what pack_int8 makes of the weight on a CUDA device");
  const int64_t bytes = packed->size(packed->dim() - 1);
  two_four = bytes != kTileValues;
  const int64_t accepted =
      two_four ? (element == 1 ? Sparse24<int8_t>::kTileBytes : Sparse24<__half>::kTileBytes) : int64_t{kTileValues};
  Weights w = {};
  w.tiles = static_cast<const uint8_t*>(packed->data_ptr());
  w.bands = static_cast<int>(ceil_div(channels, kBand));
  w.k_tiles = static_cast<int>(ceil_div(bytes_k, two_four ? 128 : 64));
  w.kept = w.bands * w.k_tiles;
  if (columns) {
    w.kept = static_cast<int>(packed->size(0));
    STD_TORCH_CHECK(w.kept > 0, args.op(), ": tile_columns keep no tile, accepted is at least one");
    w.columns = args.vector<int32_t>("tile_columns", columns, ScalarType::Int, w.kept);
    w.offsets = args.vector<int32_t>("tile_offsets", offsets, ScalarType::Int, w.bands + 1);
    STD_TORCH_CHECK(w.offsets != nullptr, args.op(), ": tile_columns come with tile_offsets");
  }
  STD_TORCH_CHECK(bytes == accepted && packed->numel() == w.kept * bytes, args.op(), ": packed has shape ",
                  shape_of(*packed), ", which is not that of a weight of ", channels, " channels by ", bytes_k,
                  " bytes");
  args.same_device("packed", *packed);
  return w;
}

// Shapes of compressed weights (torchaccel/ops/blocks.py) against the input `x`; returns the output channels.
inline int64_t check_blocks(const Arguments& args, const Tensor& x, const Tensor& values, const Tensor& columns,
                            const Tensor& row_offsets, ScalarType dtype) {
  check_dtype(args.op(), "values", values.scalar_type(), {dtype});
  for (const Tensor* index : {&columns, &row_offsets}) {
    check_dtype(args.op(), "an index of the blocks", index->scalar_type(), {ScalarType::Int});
  }
  STD_TORCH_CHECK(values.dim() == 3 && columns.dim() == 1 && columns.size(0) == values.size(0) &&
                      row_offsets.dim() == 1 && row_offsets.size(0) > 0,
                  args.op(), ": values has shape ", shape_of(values), ", columns ", shape_of(columns),
                  " and row_offsets ", shape_of(row_offsets),
                  ", accepted are [blocks, rows, columns], [blocks] and [block rows + 1]");
  STD_TORCH_CHECK(x.dim() == 4 && x.size(1) % values.size(2) == 0, args.op(), ": the input has shape ", shape_of(x),
                  ", accepted is [N, C, H, W] with C a multiple of ", values.size(2));
  return (row_offsets.size(0) - 1) * values.size(1);
}

struct Geometry {
  const std::vector<int64_t>&kernel, &stride, &padding, &dilation;
};

// The convolution over `a` [N, C, H, W], channels_last.
inline Image image_of(const char* op, const Tensor& a, const Geometry& g, int64_t element) {
  check_pair(op, "kernel_size", g.kernel, 1);
  check_pair(op, "stride", g.stride, 1);
  check_pair(op, "padding", g.padding, 0);
  check_pair(op, "dilation", g.dilation, 1);
  const int64_t height = a.size(2) + 2 * g.padding[0] - g.dilation[0] * (g.kernel[0] - 1) - 1;
  const int64_t width = a.size(3) + 2 * g.padding[1] - g.dilation[1] * (g.kernel[1] - 1) - 1;
  STD_TORCH_CHECK(height >= 0 && width >= 0, op, ": a kernel of (", g.kernel[0], ", ", g.kernel[1], ") with dilation (",
                  g.dilation[0], ", ", g.dilation[1], ") does not fit an input of (", a.size(2), ", ", a.size(3), ")");
  const int64_t oh = height / g.stride[0] + 1, ow = width / g.stride[1] + 1, channels = a.size(1) * element;
  check_range(op, a.size(0) * oh * ow, 1, g.kernel[0] * g.kernel[1] * channels);
  STD_TORCH_CHECK(g.kernel[0] <= Image::kMostTaps && g.kernel[1] <= Image::kMostTaps, op, ": the kernel is (",
                  g.kernel[0], ", ", g.kernel[1], "), the CUDA kernel accepts up to ", Image::kMostTaps, " a side");
  for (const int64_t size : {a.size(2), a.size(3), g.padding[0], g.padding[1], g.stride[0], g.stride[1]}) {
    STD_TORCH_CHECK(size < (1 << 30), op, ": the image or its padding is larger than a kernel takes");
  }
  Image x = {};
  x.x = static_cast<const uint8_t*>(a.data_ptr());
  x.rows = static_cast<int>(a.size(0) * oh * ow);
  x.k = static_cast<int>(g.kernel[0] * g.kernel[1] * channels);
  x.height = static_cast<int>(a.size(2)), x.width = static_cast<int>(a.size(3));
  x.channels = static_cast<int>(channels);
  x.kernel_h = static_cast<int>(g.kernel[0]), x.kernel_w = static_cast<int>(g.kernel[1]);
  x.stride_h = static_cast<int>(g.stride[0]), x.stride_w = static_cast<int>(g.stride[1]);
  x.padding_h = static_cast<int>(g.padding[0]), x.padding_w = static_cast<int>(g.padding[1]);
  x.dilation_h = static_cast<int>(g.dilation[0]), x.dilation_w = static_cast<int>(g.dilation[1]);
  x.by_image = Divider(static_cast<uint32_t>(oh * ow));
  x.by_width = Divider(static_cast<uint32_t>(ow));
  x.by_channels = Divider(static_cast<uint32_t>(std::max<int64_t>(channels, 1)));
  x.by_kernel_width = Divider(static_cast<uint32_t>(g.kernel[1]));
  return x;
}

inline int64_t out_height(const Tensor& a, const Geometry& g) {
  return (a.size(2) + 2 * g.padding[0] - g.dilation[0] * (g.kernel[0] - 1) - 1) / g.stride[0] + 1;
}

inline int64_t out_width(const Tensor& a, const Geometry& g) {
  return (a.size(3) + 2 * g.padding[1] - g.dilation[1] * (g.kernel[1] - 1) - 1) / g.stride[1] + 1;
}

// A pointwise convolution reads its image as a matrix.
inline bool is_matrix(const Geometry& g) {
  return g.kernel[0] == 1 && g.kernel[1] == 1 && g.stride[0] == 1 && g.stride[1] == 1 && g.padding[0] == 0 &&
         g.padding[1] == 0;
}

inline Matrix as_matrix(const Image& x) { return {x.x, x.channels, x.rows, x.channels}; }

inline Tensor empty_nhwc(const Tensor& like, int64_t c, int64_t h, int64_t w, ScalarType dtype) {
  const int64_t sizes[] = {like.size(0), c, h, w};
  return torch::stable::empty({sizes, 4}, dtype, std::nullopt, like.device(), std::nullopt,
                              torch::headeronly::MemoryFormat::ChannelsLast);
}

// `x` at an address of whole 16 bytes, as cp.async needs it: a copy of an odd view.
inline Tensor on_boundary(const Tensor& x) { return aligned(x.data_ptr(), 16) ? x : torch::stable::clone(x); }

// wgmma is what TORCHACCEL_CUDA_ISA asks for, until a GPU has confirmed it.
inline bool wants_warpgroups(int device) {
  const char* isa = std::getenv("TORCHACCEL_CUDA_ISA");
  if (isa == nullptr || std::strcmp(isa, "mma") == 0) return false;
  STD_TORCH_CHECK(std::strcmp(isa, "wgmma") == 0, "TORCHACCEL_CUDA_ISA is '", isa, "', accepted are mma and wgmma");
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  return major == 9 && minor == 0 && has_warpgroup_code();
}

inline Device device_of(const Tensor& x) {
  Device d = {};
  cudaDeviceGetAttribute(&d.multiprocessors, cudaDevAttrMultiProcessorCount, x.get_device_index());
  cudaDeviceGetAttribute(&d.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, x.get_device_index());
  d.warpgroups = wants_warpgroups(x.get_device_index());
  return d;
}

// A call whose workspace is a tensor, which `kept` holds until the op returns: torch reuses it in stream order.
inline Call call_of(const Tensor& x, const Weights& weights, const Epilogue& e, OptionalTensor& kept) {
  Epilogue complete = e;
  complete.wide = is_wide(e);
  return {weights, complete, device_of(x), current_stream(x), [&x, &kept](int64_t bytes) {
            kept = torch::stable::new_empty(x, {bytes}, ScalarType::Byte);
            return kept->data_ptr();
          }};
}

inline void check_ran(const char* op, bool ran) {
  STD_TORCH_CHECK(ran, op, ": no kernel fits the shared memory of this device");
  check_launch(op);
}

// What the int8 convolutions share: all but their weights.
struct Int8Convolution {
  Tensor input, out;
  OptionalTensor kept_residual;  // holds the memory of the residual
  Geometry geometry;
  Image x;
  Epilogue epilogue;
  bool is_signed;
};

struct ResidualTensors {
  const OptionalTensor& residual;
  const OptionalTensor& scale;
  const OptionalTensor& zero_point;
};

// a: [N, C, H, W]; the caller has checked C against the weight, and made the device of `a` the current one.
inline Int8Convolution int8_convolution(Arguments& args, const Tensor& a, int64_t channels, const Geometry& g,
                                        const EpilogueTensors& t, const ResidualTensors& r,
                                        const std::string& activation, ScalarType out_dtype) {
  const bool is_signed = is_signed_int8(args.op(), a.scalar_type(), a.size(1) * g.kernel[0] * g.kernel[1]);
  const Tensor nhwc = on_boundary(in_nhwc(a));
  Image x = image_of(args.op(), nhwc, g, 1);
  check_range(args.op(), x.rows, channels, x.k);
  const Tensor out = empty_nhwc(a, channels, out_height(a, g), out_width(a, g), out_dtype);
  Epilogue e = int8_epilogue(args, t, out, a.size(0), static_cast<int>(x.by_image.divisor), channels, activation);
  const OptionalTensor kept = set_residual(args, r.residual, r.scale, r.zero_point, out, e);
  x.zero_point = e.zero_point;
  x.per_image = e.zero_rows != 0;
  return {nhwc, out, kept, g, x, e, is_signed};
}

// Tiles along K that are no whole 16 bytes of one pixel are copied in smaller pieces, which only dense weights can be.
inline void check_pieces(const char* op, const Weights& w, bool two_four, int64_t row_bytes) {
  STD_TORCH_CHECK((!two_four && w.columns == nullptr) || row_bytes % 16 == 0, op,
                  ": 2:4 weights and skipped tiles need whole 16 bytes of input channels, given are ", row_bytes);
}

inline Tensor run_int8_convolution(Arguments& args, const Int8Convolution& c, const Weights& w, bool two_four) {
  check_pieces(args.op(), w, two_four, c.x.channels);
  if (c.out.numel() == 0) return c.out;
  OptionalTensor workspace;
  const Call call = call_of(c.input, w, c.epilogue, workspace);
  const auto run_on = [&](const auto& x) {
    return two_four ? run_two_four(c.is_signed, call, x) : run_dense(c.is_signed, call, x);
  };
  if (w.columns != nullptr) {
    check_ran(args.op(), run_skip(c.is_signed, two_four, call, c.x));
  } else {
    check_ran(args.op(), is_matrix(c.geometry) ? run_on(as_matrix(c.x)) : run_on(c.x));
  }
  return c.out;
}

}  // namespace torchaccel::cuda
