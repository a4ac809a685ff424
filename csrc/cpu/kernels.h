// What an op hands to its inner loops: plain pointers and sizes, and the table of one instruction set.
#pragma once

#include <cstdint>

#include "chain.h"

namespace torchaccel {

enum class Type : int { kNone, kFloat32, kInt8, kUint8 };
constexpr int64_t size_of(Type type) { return type == Type::kFloat32 ? 4 : type == Type::kNone ? 0 : 1; }
enum class Activation : int { kNone, kRelu, kRelu6, kGelu, kSilu };

// Pixels (rows of the implicit matrix) that are gathered at once, and output channels of one unit of work.
constexpr int64_t kPanelRows = 64;
constexpr int64_t kLanes = 16;
// Rows of a matrix up to which reading the weights is the cost (thin.inl).
constexpr int64_t kThinRows = 4;
constexpr int64_t kUnitChannels = 2 * kLanes;
// The sparse kernel's part of a panel that stays in L1, and the output channels whose sums wait for the next part.
constexpr int64_t kChunkBytes = 48 << 10;
constexpr int64_t kSlabChannels = 512;

// Activations [n, h, w, c] (NHWC) under a convolution. A matrix [M, K] is n = M, h = w = 1, c = K with a 1x1 kernel.
struct Input {
  const uint8_t* data;
  int64_t n, h, w, c;
  int64_t kh, kw, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int64_t oh, ow;
  int64_t group_channels;     // c / groups
  uint32_t flip;              // 0x80808080 turns int8 into uint8, raising the zero point by 128; 0 for uint8
  const int32_t* zero_point;  // what padding holds; nullptr is 0
  int64_t zero_point_step;    // 1: one per image, 0: one for all

  int64_t rows() const { return n * oh * ow; }
  bool is_thin() const { return n <= kThinRows && h * w * kh * kw == 1 && pad_h + pad_w == 0 && group_channels == c; }
  int64_t depth() const { return kh * kw * group_channels; }
  int64_t depth4() const { return (depth() + 3) / 4; }
  int64_t panels() const { return (rows() + kPanelRows - 1) / kPanelRows; }
  int64_t panel_bytes() const { return depth4() * kPanelRows * 4; }
  // What gathering needs besides the panel: 16 pixels of padding, and 16 rows where c is not in whole dwords.
  int64_t gather_bytes() const { return kLanes * 64 + kLanes * row_bytes(); }
  // Blocks of 4x4 read a panel four times less often than blocks of 1x4, and leave it in L2.
  int64_t chunk_bytes(int64_t block_rows) const {
    const int64_t most = block_rows == 1 ? kChunkBytes : 8 * kChunkBytes;
    return panel_bytes() < most ? panel_bytes() : most;
  }
  int64_t sparse_bytes(int64_t block_rows) const {
    return chunk_bytes(block_rows) + kSlabChannels * kPanelRows * 4 + gather_bytes();
  }
  int64_t row_bytes() const { return group_channels % 4 == 0 ? 0 : (depth() + 63) / 64 * 64; }
};

// The matrix [m, k] of int8 or uint8 under a product.
inline Input matrix_input(const void* data, int64_t m, int64_t k, bool is_signed) {
  Input in = {};
  in.data = static_cast<const uint8_t*>(data);
  in.n = m, in.h = 1, in.w = 1, in.c = k, in.group_channels = k;
  in.kh = in.kw = in.stride_h = in.stride_w = in.dilation_h = in.dilation_w = in.oh = in.ow = 1;
  in.flip = is_signed ? 0x80808080u : 0u;
  return in;
}

// The matrix [rows, k] of floats under a product that quantizes it, each row by its own range.
struct FloatRows {
  const float* data;
  int64_t rows, k;
  bool is_signed;

  int64_t panels() const { return (rows + kPanelRows - 1) / kPanelRows; }
  // One panel with its scales and zero points.
  int64_t quantized_bytes() const { return (kPanelRows * (k + 8) + 63) / 64 * 64; }
};

// act((x @ b.T) * scale_b + bias) with int8 weights [ceil(channels / 16)][k][16], zero padded.
struct WeightOnly {
  const float* x;  // [rows, k]
  int64_t rows, k, channels;
  const int8_t* packed;
  const float* scale_b;  // [channels]
  const float* bias;     // [channels] or nullptr
  Activation activation;
  float* out;  // [rows, channels]

  int64_t units() const { return (channels + kUnitChannels - 1) / kUnitChannels; }
};

// act(float(acc - zero_point * colsum) * (scale_a * scale_b) + bias + residual), stored as [rows, channels].
struct Epilogue {
  int64_t channels;           // row length of out and residual
  int64_t rows_per_scale;     // rows that share one scale_a and zero_point: OH * OW, or 1 for a matrix
  const int32_t* colsum;      // [channels]
  const float* scale_b;       // [channels]
  const float* bias;          // [channels] or nullptr
  const float* scale_a;       // [1] or one per rows_per_scale
  int64_t scale_a_step;       // 0 or 1
  const int32_t* zero_point;  // as scale_a, or nullptr
  int64_t zero_point_step;
  int32_t zero_point_shift;  // 128 where the activations were flipped to uint8
  Type residual_type;
  const void* residual;
  float residual_scale;
  int32_t residual_zero_point;
  Activation activation;
  Type out_type;
  void* out;
  float inverse_scale_out;
  int32_t zero_point_out;
};

// Dense weights as pack_int8 lays them out: [groups][ceil(N / 16)][ceil(K / 4)][16][4], zero padded.
struct DenseWeights {
  const int8_t* packed;
  int64_t groups, group_channels;  // output channels of a group
  int64_t blocks16() const { return (group_channels + kLanes - 1) / kLanes; }
  int64_t units() const { return (group_channels + kUnitChannels - 1) / kUnitChannels; }
};

// Block compressed sparse rows: values [blocks][block_rows][4], columns index groups of 4 along (kh, kw, c).
struct SparseWeights {
  const int8_t* values;
  const int32_t* columns;
  const int32_t* row_offsets;
  int64_t block_rows;  // 1 or 4
  int64_t channels;
  int64_t depth4;  // columns of a row: kh * kw * c / 4
  int64_t blocks;
};

// Where the results of pooling and addition go.
struct Output {
  Type type;
  void* data;
  float inverse_scale;
  int32_t zero_point;
};

// y = float(sum - zero_point * pixels) * (scale * (1 / count)); of the windows of an Input without dilation.
struct Average {
  bool is_signed, include_padding;  // whether padding counts
  float scale;
  int32_t zero_point;
  Output out;

  // Blocks of channels that are worth a task of their own: a global average has one output pixel.
  static constexpr int64_t kChannels = 4 * kLanes;
  static int64_t blocks(const Input& in) { return (in.c + kChannels - 1) / kChannels; }
};

// y = act(float(a - zero_point_a) * scale_a + float(b - zero_point_b) * scale_b), elements in the order of memory.
struct Addition {
  const void *a, *b;
  Type type_a, type_b;
  float scale_a, scale_b;
  int32_t zero_point_a, zero_point_b;
  Activation activation;
  Output out;
};

struct ImageF32;
struct ShareF32;
struct SparseF32;
struct OutputF32;

struct Kernels {
  const char* name;
  // q = saturate(rint(x * inverse) + zero_point), x [count].
  void (*quantize)(const float* x, int64_t count, float inverse, int32_t zero_point, bool is_signed, void* q);
  // Each row of x [rows, k] by its own range; scale and zero_point are [rows].
  void (*quantize_rows)(const float* x, int64_t rows, int64_t k, bool is_signed, void* q, float* scale,
                        int32_t* zero_point);
  // Work units [begin, end) of panels x groups x units of channels.
  void (*dense)(const Input&, const DenseWeights&, const Epilogue&, int64_t begin, int64_t end, uint8_t* scratch);
  // The same of a matrix of floats; e.scale_a and e.zero_point are found here.
  void (*dense_dynamic)(const FloatRows&, const DenseWeights&, const Epilogue&, int64_t begin, int64_t end,
                        uint8_t* scratch);
  // Units [begin, end) of 32 output channels.
  void (*weight_only)(const WeightOnly&, int64_t begin, int64_t end);
  // Blocks of 16 output channels [begin, end) of panel p at p * ceil(channels / 16).
  void (*sparse)(const Input&, const SparseWeights&, const Epilogue&, int64_t begin, int64_t end, uint8_t* scratch);
  // Whether the columns are in range and ascend within each row.
  bool (*sparse_valid)(const SparseWeights&);
  // Output pixels [begin, end) of n * oh * ow.
  void (*max_pool)(const Input&, bool is_signed, uint8_t* out, int64_t begin, int64_t end);
  // Tasks [begin, end) of output pixels x Average::blocks.
  void (*avg_pool)(const Input&, const Average&, int64_t begin, int64_t end);
  // Elements [begin, end).
  void (*add)(const Addition&, int64_t begin, int64_t end);
  // Tasks [begin, end) of one step of a chain of int8 or float32 layers, see chain.h.
  void (*chain)(const ChainStep&, const ChainData&, int64_t begin, int64_t end);
  void (*chain_f32)(const ChainStep&, const ChainData&, int64_t begin, int64_t end);
  void (*sparse_f32)(const ImageF32&, const SparseF32&, const OutputF32&, const ShareF32&, uint8_t* scratch);
  // Whether slabs [begin, end) lead nowhere out of memory.
  bool (*sparse_f32_valid)(const SparseF32&, int64_t begin, int64_t end);
};

extern const Kernels kScalarKernels, kAvx2Kernels, kAvxVnniKernels, kAvx512Kernels, kAvx512VnniKernels;

}  // namespace torchaccel
