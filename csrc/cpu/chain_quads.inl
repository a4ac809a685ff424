// Depthwise convolutions of an int8 chain, stride 1 along rows, by dot products of four neighbouring taps.
//
// As blocks of 4x4 three of four products would be with zero. Here four neighbouring vectors of a plane are transposed
// by bytes, so that a dword holds four taps of one channel: 8 shuffles, and 4 dot products for each output that these
// taps belong to, with weights that are shifted by its place. The sums lie channel by channel in 128 bits, which is how
// packing them to bytes finds the order of places again. Roofline: dot products and shuffles alike.
#pragma once

#include "chain_out.inl"

#ifdef TORCHACCEL_QUADS

// The first `count`, at most kNow, of kOutputs neighbouring outputs of a plane; what others read need not exist.
template <int kOfRow, int kOutputs, int kNow, ChainFinish kFinish>
TORCHACCEL_INLINE void chain_quads(int64_t rows, const int32_t* offsets, const int8_t* values, const uint8_t* x,
                                   const ChainOut& out, F32 scale, F32 bias, I32 start, uint8_t* y, int64_t count) {
  I32 sums[kNow][4];
  TORCHACCEL_UNROLL for (int o = 0; o < kNow; ++o) { TORCHACCEL_UNROLL for (int k = 0; k < 4; ++k) sums[o][k] = start; }
  for (int64_t r = 0; r < rows; ++r) {
    const uint8_t* from = x + offsets[r];
    TORCHACCEL_UNROLL for (int q = 0; q < kOfRow; ++q, from += 256, values += 16 * kOutputs) {
      X taps[4];
      TORCHACCEL_UNROLL for (int k = 0; k < 4; ++k) taps[k] = x_load(from + 64 * k);
      x_transpose4(taps);
      TORCHACCEL_UNROLL for (int o = 0; o < kNow; ++o) {
        const W weights = w_quad(values + 16 * o);
        TORCHACCEL_UNROLL for (int k = 0; k < 4; ++k) sums[o][k] = dot4(sums[o][k], taps[k], weights);
      }
    }
  }
  TORCHACCEL_UNROLL for (int o = 0; o < kNow; ++o) {
    if (o >= count) break;
    I32 steps[4];
    TORCHACCEL_UNROLL for (int k = 0; k < 4; ++k) {
      steps[k] = chain_steps<kFinish>(out, sums[o][k], scale, bias, X(), W());
    }
    const Pair first = pair(steps[0], steps[1]), last = pair(steps[2], steps[3]);
    i32_store(reinterpret_cast<int32_t*>(y + 64 * o),
              i32_bytes_of_quads(first, last, out.low, out.high, out.zero_point));
  }
}

template <int kOfRow, int kOutputs, int kRows, ChainFinish kFinish>
static void chain_quads_of_tile(const ChainStep& s, const ChainData& d, const ChainTile& t, const ChainOut& given,
                                int64_t plane, int64_t vectors) {
  const ChainOut out = given;  // a copy: a store of bytes might change what a reference leads to
  const int8_t* values = static_cast<const int8_t*>(d.values) + s.quads;
  const int64_t rows = kRows > 0 ? kRows : s.kernel_h;
  values += plane * rows * kOfRow * kOutputs * 16;
  const uint8_t* x = t.x + plane * s.x_plane;
  uint8_t* y = t.y;
  const int32_t* offsets = d.indices + s.quad_offsets;
  const F32 scale = quad_load(out.scale), bias = quad_load(out.bias);
  const I32 start = i32_quad(out.starts);
  int64_t v = 0;
  for (; v + kOutputs / 2 < vectors; v += kOutputs) {
    chain_quads<kOfRow, kOutputs, kOutputs, kFinish>(rows, offsets, values, x + 64 * v, out, scale, bias, start,
                                                     y + 64 * v, vectors - v);
  }
  if (v < vectors) {
    chain_quads<kOfRow, kOutputs, kOutputs / 2, kFinish>(rows, offsets, values, x + 64 * v, out, scale, bias, start,
                                                         y + 64 * v, vectors - v);
  }
}

template <int kOfRow, int kOutputs, int kRows>
static void chain_quads_of_tile(const ChainStep& s, const ChainData& d, const ChainTile& t, const ChainOut& out,
                                int64_t plane, int64_t vectors) {
  if (s.activation != 0) {
    chain_quads_of_tile<kOfRow, kOutputs, kRows, ChainFinish::kCurved>(s, d, t, out, plane, vectors);
  } else {
    chain_quads_of_tile<kOfRow, kOutputs, kRows, ChainFinish::kPlain>(s, d, t, out, plane, vectors);
  }
}

// A tile of a plane, if it has such weights.
static bool chain_quads(const ChainStep& s, const ChainData& d, const ChainTile& t, const ChainOut& out, int64_t plane,
                        int64_t vectors) {
  if (s.quads < 0) return false;
  if (s.kernel_w <= 3) {  // 3x3 as a constant: its weights stay in registers
    s.kernel_h == 3 ? chain_quads_of_tile<kChainQuads3.of_row, kChainQuads3.outputs, 3>(s, d, t, out, plane, vectors)
                    : chain_quads_of_tile<kChainQuads3.of_row, kChainQuads3.outputs, 0>(s, d, t, out, plane, vectors);
  } else if (s.kernel_w <= 5) {
    chain_quads_of_tile<kChainQuads5.of_row, kChainQuads5.outputs, 0>(s, d, t, out, plane, vectors);
  } else {
    chain_quads_of_tile<kChainQuads7.of_row, kChainQuads7.outputs, 0>(s, d, t, out, plane, vectors);
  }
  return true;
}

#else

static bool chain_quads(const ChainStep&, const ChainData&, const ChainTile&, const ChainOut&, int64_t, int64_t) {
  return false;
}

#endif
