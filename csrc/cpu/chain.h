// A plan of int8_chain: what torchaccel/ops/int8_chain.py lays out, step by step, over one image.
//
// An activation lies in the arena as planes of four channels: [C / 4][rows][pitch][4] of uint8 (int8 with its sign bit
// flipped), with the zero point around it where a convolution pads. A "place" is one pixel of a plane, 4 bytes. Rows
// share their padding (the right one of a row is the left one of the next), and a stride splits a plane into phases,
// so that every tap of a convolution is a constant offset from an output's place: kernels run over places alone. Where
// several images go together, their places alternate ("lanes").
#pragma once

#include <cstdint>

namespace torchaccel {

enum class ChainKind : int64_t { kLoad, kSplit, kConv, kMaxPool, kAverage, kStore };

// All in bytes unless said otherwise; the order of the fields is that of `Step` in torchaccel/ops/int8_chain.py.
struct ChainStep {
  int64_t kind;
  int64_t x, x_plane,
      x_pitch;  // the input's first pixel in the arena, from a plane to the next, from a row to the next
  int64_t y, y_plane, y_pitch;
  int64_t residual, residual_plane;      // -1: none; places as those of y
  int64_t planes;                        // of the output
  int64_t h, w;                          // pixels of the input
  int64_t stride_h, stride_w;            // of the phases that loading and splitting make
  int64_t pad_h, pad_w;                  // pixels before the first
  int64_t phases_h, phases_w, phase;     // phases kept along each axis, and from one to the next
  int64_t y_lead, y_tail;                // what lies in a plane of y before its first place, and after its last vector
  int64_t vectors, tile;                 // of 16 places: all, and those of one tile
  int64_t block_rows;                    // of the weights: 1 or 4, or 0 for all blocks of 4x4 (dense)
  int64_t blocks;                        // of four output channels where dense; taps of a pooling window
  int64_t values, offsets, row_offsets;  // where they begin; offsets are bytes from an output's place to an input's
  int64_t starts, masks;                 // where the initial sums, and the bits of the vectors' places begin
  int64_t floats;                        // where the floats of the step begin
  int64_t zero_point;                    // of y
  int64_t residual_zero_point;           // of the residual; of x for the average
  int64_t channels;                      // of the tensor outside
  int64_t flip;                          // whether that tensor is int8
  int64_t x_lanes, y_lanes;              // images whose places alternate
};

constexpr int64_t kChainStepInts = sizeof(ChainStep) / sizeof(int64_t);

// What the steps index, and one image of the tensors outside. The floats of a convolution: 1 / scale_out, the least and
// greatest step, the residual's scale, then scale[4 * planes] and bias[4 * planes]; of loading: 1 / scale, least and
// greatest step; of the average: scale / pixels, 1 / scale_out, least and greatest step.
struct ChainData {
  const int8_t* values;
  const int32_t* indices;
  const float* floats;
  uint8_t* arena;
  const void* in;  // float32 [C, H, W], or bytes [H, W, C]
  void* out;       // float32 or bytes [C], or bytes [H, W, C]
  bool in_float, out_float;
  int64_t lane;  // of the image, for the steps that are done image by image
};

}  // namespace torchaccel
