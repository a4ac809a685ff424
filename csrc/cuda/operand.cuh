// The activations of a product: where 16 bytes of row p at byte k of K lie. Free of torch headers.
//
// A row is a matrix row, or an output pixel of a convolution over an NHWC tensor (implicit im2col: K is kh, kw, C with
// C innermost, the rows are N, OH, OW). Bytes past K or past the rows read as anything, since the weights hold zeros
// there and nothing is stored; padding reads as the zero point.
#pragma once

#include <type_traits>

#include "launch.cuh"
#include "numerics.cuh"
#include "ptx.cuh"

namespace torchaccel::cuda {

// n / divisor for 0 <= n < 2^31 by a multiplication.
struct Divider {
  uint32_t divisor = 1, multiplier = 1, shift = 0;

  Divider() = default;
  explicit Divider(uint32_t d) : divisor(d) {
    while ((uint64_t{1} << shift) < d) ++shift;
    multiplier = static_cast<uint32_t>((uint64_t{1} << 32) * ((uint64_t{1} << shift) - d) / d + 1);
  }

  __device__ int divide(int n) const {
    const auto wide = static_cast<uint32_t>(n);
    return static_cast<int>((__umulhi(wide, multiplier) + wide) >> shift);
  }
};

// x: [rows, k bytes], rows `pitch` bytes apart.
struct Matrix {
  const uint8_t* x;
  int64_t pitch;
  int rows, k;

  struct Row {
    const uint8_t* start;  // null past the last row
    static constexpr uint32_t fill = 0;
  };
  struct Place {
    int k;
  };

  __device__ Row row(int p) const { return {p < rows ? x + p * pitch : nullptr}; }
  __device__ Place place(int at) const { return {at}; }

  // Null where there is nothing to read.
  __device__ const uint8_t* address(const Row& row, const Place& place) const {
    return row.start != nullptr && place.k < k ? row.start + place.k : nullptr;
  }
};

// x: [N, H, W, C] of `channels` bytes a pixel; rows = N * OH * OW, k = kh * kw * channels, kh and kw up to kMostTaps.
struct Image {
  static constexpr int kMostTaps = 15;  // a bit each and one to spare in half of a register

  const uint8_t* x;
  int rows, k;
  int height, width, channels;
  int kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  Divider by_image, by_width, by_channels, by_kernel_width;  // OH * OW, OW, channels, kw
  const int32_t* zero_point;                                 // of each image where `per_image`, else of all; null is 0
  bool per_image;

  struct Row {
    const uint8_t* start;  // where the first tap lies, or would lie
    uint32_t inside;       // bit ky: row ky of the kernel lies inside; bit 16 + kx: column kx; 0 past the last row
    uint32_t fill;         // the zero point in four bytes
  };
  struct Place {
    int64_t offset;  // from the first tap
    uint32_t tap;    // the bits that must be inside; all where K is over
  };

  __device__ Row row(int p) const {
    if (p >= rows) return {nullptr, 0, 0};
    const int n = by_image.divide(p);
    const int pixel = p - n * static_cast<int>(by_image.divisor);
    const int oy = by_width.divide(pixel);
    const int y = oy * stride_h - padding_h;
    const int x0 = (pixel - oy * static_cast<int>(by_width.divisor)) * stride_w - padding_w;
    const int32_t zero = zero_point != nullptr ? zero_point[per_image ? n : 0] : 0;
    const int64_t first = (static_cast<int64_t>(n) * height + y) * width + x0;
    return {x + first * channels,
            taps_inside(kernel_h, y, dilation_h, height) | taps_inside(kernel_w, x0, dilation_w, width) << 16,
            static_cast<uint32_t>(zero & 0xff) * 0x01010101u};
  }

  __device__ Place place(int at) const {
    if (at >= k) return {0, ~0u};
    const int tap = by_channels.divide(at);
    const int ky = by_kernel_width.divide(tap);
    const int kx = tap - ky * static_cast<int>(by_kernel_width.divisor);
    const int64_t pixels = static_cast<int64_t>(ky) * dilation_h * width + kx * dilation_w;
    return {pixels * channels + at - tap * channels, 1u << ky | 1u << 16 << kx};
  }

  __device__ const uint8_t* address(const Row& row, const Place& place) const {
    return (row.inside & place.tap) == place.tap ? row.start + place.offset : nullptr;
  }

 private:
  // Bit i: `first` + i * step lies in [0, size).
  __device__ static uint32_t taps_inside(int taps, int first, int step, int size) {
    uint32_t bits = 0;
#pragma unroll 1
    for (int i = 0; i < taps; ++i) {
      if (static_cast<unsigned>(first + i * step) < static_cast<unsigned>(size)) bits |= 1u << i;
    }
    return bits;
  }
};

// Where the 16-byte chunk `chunk` of row `row` lies in a tile of kBytes (64 or 128) a row: eight rows of one chunk,
// which ldmatrix reads at once, lie in eight different groups of banks.
template <int kBytes>
__device__ inline int swizzled(int row, int chunk) {
  static_assert(kBytes == 64 || kBytes == 128, "rows of 4 or 8 chunks");
  return row * kBytes + (kBytes == 64 ? chunk ^ (row >> 1 & 3) : chunk ^ (row & 7)) * 16;
}

// The copying of [kRows, kBytes of K] into shared memory by kThreads threads, in pieces of kPiece bytes: 16 and 4 copy
// asynchronously; 1 and 2, for what is not aligned, by way of registers. The places of a piece's rows never change, so
// they are found once.
template <typename Operand, int kRows, int kBytes, int kThreads, int kPiece>
class OperandTile {
  static constexpr int kChunks = kBytes / 16;  // of a row
  static constexpr int kStep = kThreads / kChunks;
  static constexpr int kMine = (kRows + kStep - 1) / kStep;
  static_assert(kThreads % kChunks == 0, "a thread's rows share a chunk");

 public:
  __device__ OperandTile(const Operand& operand, int first_row, int thread)
      : operand_(operand), chunk_(thread % kChunks), row_(thread / kChunks) {
#pragma unroll
    for (int i = 0; i < kMine; ++i) rows_[i] = operand.row(first_row + row_ + i * kStep);
  }

  // The bytes from `k` on go to `tile`.
  __device__ void load(int k, uint8_t* tile) const {
    k += chunk_ * 16;
    if constexpr (kPiece == 16) {
      const auto place = operand_.place(k);
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
        if (past(i)) break;
        uint8_t* to = target(tile, i);
        if (const uint8_t* from = operand_.address(rows_[i], place)) {
          ptx::cp_async<16>(to, from);
        } else {
          *reinterpret_cast<uint4*>(to) = filled(rows_[i].fill);
        }
      }
    } else if constexpr (kPiece == 4) {
#pragma unroll
      for (int piece = 0; piece < 16; piece += 4) {
        const auto place = operand_.place(k + piece);
#pragma unroll
        for (int i = 0; i < kMine; ++i) {
          if (past(i)) break;
          uint8_t* to = target(tile, i) + piece;
          if (const uint8_t* from = operand_.address(rows_[i], place)) {
            ptx::cp_async<4>(to, from);
          } else {
            *reinterpret_cast<uint32_t*>(to) = rows_[i].fill;
          }
        }
      }
    } else {
      static_assert(kPiece == 1 || kPiece == 2, "elements");
      using Element = std::conditional_t<kPiece == 1, uint8_t, uint16_t>;
      Pack<Element, 16 / kPiece> gathered[kMine];
#pragma unroll
      for (int piece = 0; piece < 16 / kPiece; ++piece) {
        const auto place = operand_.place(k + piece * kPiece);
#pragma unroll
        for (int i = 0; i < kMine; ++i) {
          const uint8_t* from = operand_.address(rows_[i], place);
          gathered[i].values[piece] =
              from != nullptr ? *reinterpret_cast<const Element*>(from) : static_cast<Element>(rows_[i].fill);
        }
      }
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
        if (past(i)) break;
        *reinterpret_cast<Pack<Element, 16 / kPiece>*>(target(tile, i)) = gathered[i];
      }
    }
  }

 private:
  __device__ uint8_t* target(uint8_t* tile, int i) const { return tile + swizzled<kBytes>(row_ + i * kStep, chunk_); }
  // Whether the thread has no i-th row; known to the compiler where the threads share the rows evenly.
  __device__ bool past(int i) const { return kRows % kStep != 0 && row_ + i * kStep >= kRows; }
  __device__ static uint4 filled(uint32_t word) { return make_uint4(word, word, word, word); }

  const Operand& operand_;
  int chunk_, row_;
  typename Operand::Row rows_[kMine];
};

}  // namespace torchaccel::cuda
