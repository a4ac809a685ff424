// A plan of conv_chain: what torchaccel/ops/_chain_step.py lays out, step by step, for one image or a few at a time.
//
// A "place" is one pixel of a plane, 4 bytes: one channel of float32, or four of uint8 (int8 with its sign bit
// flipped). An activation is cut into blocks, grid_h x grid_w of them in each of `images` images, and a vector holds
// the same place of all blocks: [planes][rows][columns][16 lanes], where lane ((image * grid_h + i) * grid_w + j) is
// block (i, j), and rows x columns of vectors are the pixels of one block. So a neighbouring pixel is a neighbouring
// vector, every tap of a convolution is a constant offset, whatever its stride, and every load is aligned. Around its
// own pixels a block has a halo of those of its neighbours, or of padding; a step of its own fills it. The rows
// of a plane may lie behind each other, or the planes of a row, so that what a tile of outputs reads is nearly one
// piece of memory. Lanes and pixels that do not exist hold anything, and are never read by those that do.
#pragma once

#include <cstdint>

namespace torchaccel {

enum class ChainKind : int64_t { kLoad, kRelane, kHalo, kConv, kMaxPool, kAverage, kStore, kTransform, kWinograd };

// How an activation is cut into lanes.
struct ChainGrid {
  int64_t images, grid_h, grid_w, block_h, block_w;
};

// All in bytes unless said otherwise; the order of the fields is that of `Step` in torchaccel/ops/_chain_step.py.
struct ChainStep {
  int64_t kind;
  int64_t x, x_plane,
      x_pitch;  // the input's first pixel in the arena, from a plane to the next, from a row to the next
  int64_t y, y_plane, y_pitch;
  int64_t residual, residual_plane, residual_pitch;  // -1: none
  int64_t planes;                                    // of the output; of the input where the step ends the chain
  int64_t h, w;                                      // pixels of an image that is moved or averaged
  int64_t channels;                                  // of the tensor outside
  int64_t rows, columns;                             // vectors of a plane that a convolution or max-pooling makes
  int64_t x_down, x_across;  // from the input of one output to that of the one below, and to its right
  ChainGrid x_grid, y_grid;
  int64_t tile;        // vectors of a row that are computed together, at most
  int64_t block_rows;  // of int8 weights: 1 or 4, or 0 for all blocks of 4x4 (dense); float32: rows that share offsets
  int64_t blocks;      // of four output channels where int8 is dense; taps of a pooling window; vectors of a halo
  int64_t chunks;      // of K, float32
  int64_t values, offsets, row_offsets;  // where they begin; offsets are bytes from an output's place to an input's
  int64_t starts;                        // where the initial sums of int8 begin, or the groups of float32
  int64_t lanes;                         // where the lanes that a halo takes begin
  int64_t floats;                        // where the floats of the step begin
  int64_t zero_point;                    // of y
  int64_t residual_zero_point;           // of the residual; of x for the average
  int64_t flip;                          // whether the tensor outside is int8
  int64_t padding;                       // a halo's place outside of the image, as a word
  int64_t stride_h, stride_w;  // of the pixels that a copy from lanes to others takes; h x w are what it gives
  int64_t points;              // of Winograd's transform, 6 or 7; it reads `w` vectors of a row, stride_w apart
  int64_t quads;               // where the weights of a depthwise int8 convolution begin in quads, -1: there are none
  int64_t quad_offsets;  // where the offsets of its kernel's rows begin, from an output of a plane to the first tap
  int64_t kernel_h, kernel_w;
  // Rows and columns of y that an output of a convolution becomes: its planes are those of y for the first of these
  // places, then for the next one to its right, and so on. y_pitch is from a row of outputs to the next.
  int64_t spread;
  int64_t activation;  // an `Activation` that is more than bounds, or 0
};

// Quads of neighbouring taps that a row of a kernel and some neighbouring outputs read, and how many outputs that are.
struct ChainQuads {
  int of_row, outputs;
};
constexpr ChainQuads kChainQuads3 = {1, 2}, kChainQuads5 = {2, 4},
                     kChainQuads7 = {2, 2};  // for widths of up to 3, 5, 7

// Where a plane of a convolution's outputs begins, from the first one on.
static inline __attribute__((always_inline)) int64_t chain_plane(const ChainStep& s, int64_t plane) {
  if (s.spread == 1) return plane * s.y_plane;
  const int64_t planes = s.planes / (s.spread * s.spread), place = plane / planes;
  return plane % planes * s.y_plane + place / s.spread * (s.y_pitch / s.spread) + place % s.spread * 64;
}

constexpr int64_t kChainStepInts = sizeof(ChainStep) / sizeof(int64_t);

// Output channels of float32 that are one task, and the memory for their sums.
constexpr int64_t kChainSlab = 256, kChainTile = 7;
// The same of Winograd's, which has as many sums as points.
constexpr int64_t kChainWinogradSlab = 64, kChainPoints = 7;
constexpr int64_t kChainScratch = kChainPoints * kChainWinogradSlab * kChainTile * 64;
static_assert(kChainScratch >= kChainSlab * kChainTile * 64);

// What the steps index, and the images of the tensors outside that a step takes.
//
// The floats of an int8 convolution: 1 / scale_out, the least and greatest step, the residual's scale, then
// scale[4 * planes] and bias[4 * planes]; of a float32 one: the least and greatest output, then bias[planes]; of
// loading int8: 1 / scale, least and greatest step; of the average: scale / pixels, 1 / scale_out, least and greatest
// step.
//
// The offsets of a halo: [blocks][3], where a vector goes, where it comes from, both from the first pixel on, and its
// row of lanes [16], each a lane of the source or -1 for padding.
//
// Where neighbouring outputs of a depthwise int8 convolution are neighbouring vectors, its weights are there a second
// time, in quads: [planes][kernel_h][quads of a row][outputs][4 channels][4 taps], for as many neighbouring outputs as
// ChainQuads says, each a place further right. An instruction set takes the form that is faster on it.
//
// Float32 weights are cut into slabs of output channels x chunks of K, each a list of groups of four channels:
// row_offsets [slabs * chunks + 1] are the first group of each; starts [groups][6] are a group's first step, its steps,
// and its channels, the last one repeated where there are fewer than four. A step is one nonzero of each channel: its
// offset (one for all where they share it) and its value, [steps][4]. A channel that has fewer repeats an offset, with
// the value 0.
//
// Winograd's weights are cut into points x chunks of K: row_offsets [points * chunks + 1] are the first step of each,
// offsets [steps], and values for each [groups of four channels][its steps][4]. A step is one of the point's planes, at
// one row of the kernel.
struct ChainData {
  const void* values;  // int8 or float32
  const int32_t* indices;
  const float* floats;
  uint8_t* arena;
  float* sums;     // kChainScratch bytes of the thread's own
  const void* in;  // [images, C, H, W] float32, or [images, H, W, C] bytes or float32
  void* out;
  bool in_float, out_float;
  bool nhwc;      // how floats outside lie
  int64_t image;  // among those of a vector, for the steps that are done image by image
  int64_t images;
};

}  // namespace torchaccel
