// D[p, o] = sum over k of x[p, k] * w[o, k] for up to 8 rows of x, by packed int8 weights: int8 and uint8 activations,
// and float ones with weights that stay int8 (W8A16). Free of torch headers.
//
// Bound by reading the weights once. A block takes kRows of a band's 64 channels and all of K, or its share of K; its
// warps take turns at the tiles along K. A copy of a warp is 512 contiguous bytes: 16 bytes of K from each of 8
// channels. They are also half of the weights of one mma, since the order of K within a product is free: a lane keeps
// those 16 bytes of K, of w as of x. So each warp runs on its own, without a barrier, through a ring of its own in
// shared memory where every lane reads back what it copied itself; the work on a weight is the same for 1 and for 8
// rows, and a row of x is read by the one lane in eight that needs it. By dp4a, 8 rows would cost 32 instructions and 8
// loads of x for each 16 bytes of weights, more than half of what an H100 can issue while they arrive; here it is one
// mma and less than one load.
//
// The ring is 16 copies, 8 KB a warp: 64 KB in flight a block, with two blocks 128 KB a multiprocessor. An H100 needs
// 25 KB (25 GB/s for each of 132, 1 us of latency under load); the rest covers what the warps wait for each other.
//
// Float activations: weights become halves, exactly. float32 is split into three bfloat16, exactly down to 2^-133,
// whose products are summed apart from each other. The tensor cores sum one tile, in their own order; tiles are added
// in float32, so that errors grow with K no faster than those of float32 sums. The order is fixed: results repeat to
// the bit.
#pragma once

#include <algorithm>

#include "gemm.cuh"

namespace torchaccel::cuda {

constexpr int kGemvWarps = 8;
constexpr int kGemvThreads = kGemvWarps * kWarp;
constexpr int kGemvColumns = 8;  // rows of x: mma's columns
constexpr int kGemvCopies = 16;  // 16 bytes a lane each, in a warp's ring
constexpr int kCopyBytes = kWarp * 16;

// Channels of a block at most: three parts of each float32 leave registers for 32.
constexpr int gemv_most_rows(int bytes_x) { return bytes_x == 4 ? 32 : kBand; }

// How a launch shares the weights: channels of a block, and blocks that share K.
struct GemvPlan {
  int rows = 16;  // 16, 32 or 64, up to gemv_most_rows
  int splits = 1;
};

// The plan by which the busiest multiprocessor reads the fewest bytes, a block and a second kernel being worth as many
// bytes as arrive in the time they cost.
inline GemvPlan gemv_plan(int64_t m, int64_t n, int64_t k, int bytes_x, int multiprocessors) {
  constexpr int64_t kBlockCost = 8 << 10, kFinishCost = 64 << 10;
  constexpr int64_t kMaxSplits = 16, kLeastTiles = 2 * kGemvWarps;  // of a block
  const int64_t k_tiles = ceil_div(k, 64);
  GemvPlan best;
  int64_t least = INT64_MAX;
  for (int rows = gemv_most_rows(bytes_x); rows >= 16; rows /= 2) {
    const int64_t most = std::max<int64_t>(1, std::min(kMaxSplits, k_tiles / kLeastTiles));
    for (int64_t splits = 1; splits <= most; ++splits) {
      const int64_t blocks = ceil_div(ceil_div(n, rows) * splits, multiprocessors);
      const int64_t bytes = ceil_div(k_tiles, splits) * 64 * (rows + m * bytes_x);
      const int64_t cost = blocks * (bytes + kBlockCost) + (splits > 1 ? kFinishCost : 0);
      if (cost < least) {
        least = cost;
        best = {rows, static_cast<int>(splits)};
      }
    }
  }
  return best;
}

// Bytes of partial sums that a plan needs.
inline int64_t gemv_workspace(const GemvPlan& plan, int64_t m, int64_t n) {
  return plan.splits > 1 ? plan.splits * m * n * 4 : 0;
}

// The upper halves of two floats, the first one lowest: bfloat16 by truncation.
__device__ inline uint32_t upper_halves(float low, float high) {
  return __byte_perm(static_cast<uint32_t>(__float_as_int(low)), static_cast<uint32_t>(__float_as_int(high)), 0x7632u);
}

// What a float keeps beyond its upper half, exactly; nothing where it is infinite.
__device__ inline float lower_part(float x) {
  const float upper = __int_as_float(__float_as_int(x) & static_cast<int>(0xffff0000u));
  return fabsf(x) > FLT_MAX ? 0.0f : __fadd_rn(x, -upper);
}

// 16 elements of one row of x, on their way and as mma takes them.
template <typename X>
struct GemvColumns {
  static constexpr int kWords = 4 * sizeof(X);
  static constexpr int kParts = sizeof(X) == 4 ? 3 : 1;  // three bfloat16 for a float
  uint32_t words[kWords];

  // row: null past the last one; the elements from `at` on, zeros from k on. kPiece: bytes of a load, 16 where all rows
  // start at a multiple of 16 bytes.
  template <int kPiece>
  __device__ void load(const X* row, int at, int k) {
    constexpr int kLoads = 16 * sizeof(X) / kPiece, kStep = kPiece / sizeof(X);
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = 0;
    if (row == nullptr) return;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      if (at + i * kStep >= k) continue;
      if constexpr (kPiece == 16) {
        const uint4 v = *reinterpret_cast<const uint4*>(row + at + i * kStep);
        words[4 * i] = v.x;
        words[4 * i + 1] = v.y;
        words[4 * i + 2] = v.z;
        words[4 * i + 3] = v.w;
      } else {
        using Bits = std::conditional_t<kPiece == 1, uint8_t, std::conditional_t<kPiece == 2, uint16_t, uint32_t>>;
        const uint32_t bits = reinterpret_cast<const Bits*>(row)[at + i];
        words[i * kPiece / 4] |= bits << (i * kPiece % 4 * 8);
      }
    }
  }

  // Part after part of the elements, two or four in a register.
  __device__ void take(uint32_t (&parts)[kParts == 1 ? kWords : 24]) const {
    if constexpr (kParts == 1) {
#pragma unroll
      for (int i = 0; i < kWords; ++i) parts[i] = words[i];
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        float low = __int_as_float(static_cast<int>(words[2 * i]));
        float high = __int_as_float(static_cast<int>(words[2 * i + 1]));
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          parts[part * 8 + i] = upper_halves(low, high);
          low = lower_part(low);
          high = lower_part(high);
        }
      }
    }
  }
};

// sums += 64 of K: the lane's 16 bytes of row g (low) and row g + 8 (high), by its 16 elements of x.
template <typename X>
__device__ inline void multiply(typename ptx::Sum<X>::type (&sums)[4], const uint32_t (&low)[4],
                                const uint32_t (&high)[4], const uint32_t* x) {
  if constexpr (sizeof(X) == 1) {
#pragma unroll
    for (int step = 0; step < 4; step += 2) {
      const uint32_t a[4] = {low[step], high[step], low[step + 1], high[step + 1]};
      const uint32_t b[2] = {x[step], x[step + 1]};
      ptx::mma<X>(sums, a, b);
    }
  } else {
    using Half = std::conditional_t<sizeof(X) == 2, X, __nv_bfloat16>;
    constexpr int kParts = sizeof(X) == 2 ? 1 : 3;
    float tile[kParts][4] = {};
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      uint32_t a[4];
      widen<Half>(low[step], a[0], a[2]);
      widen<Half>(high[step], a[1], a[3]);
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const uint32_t b[2] = {x[part * 8 + 2 * step], x[part * 8 + 2 * step + 1]};
        ptx::mma<Half>(tile[part], a, b);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int part = kParts - 1; part >= 0; --part) sums[i] = __fadd_rn(sums[i], tile[part][i]);
    }
  }
}

// The sums of a block's warps: [warp][row of x][channel], padded so that fragments are written without bank conflicts.
template <int kRows>
constexpr int gemv_row = kRows + 4;
constexpr int kGemvShared = kGemvWarps * kGemvCopies * kCopyBytes;
static_assert(kGemvShared >= kGemvWarps * kGemvColumns * gemv_row<64> * 4, "the sums take the place of the rings");

// Blocks: `splits` for each kRows channels. partial: [splits, rows, channels] or null, where one block has all of K.
template <typename X, int kRows, int kPiece>
__global__ void __launch_bounds__(kGemvThreads, 2)
    gemv_kernel(Weights w, const X* x, int k, Epilogue e, int splits, typename ptx::Sum<X>::type* partial) {
  using S = typename ptx::Sum<X>::type;
  constexpr int kWidth = 4;           // channels that a thread finishes
  constexpr int kCopies = kRows / 8;  // of a tile
  constexpr int kStages = kGemvCopies / kCopies;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int split = blockIdx.x % splits, channel = blockIdx.x / splits * kRows;

  // The warp's tiles are first, first + kGemvWarps, ...; the lane's place in them is the same.
  const int first = static_cast<int>(static_cast<int64_t>(w.k_tiles) * split / splits) + warp;
  const int last = static_cast<int>(static_cast<int64_t>(w.k_tiles) * (split + 1) / splits);
  const uint8_t* tiles = w.tiles + static_cast<int64_t>(channel / kBand) * w.k_tiles * kTileValues +
                         swizzled<64>(channel % kBand + lane / 4, lane % 4);
  const X* row = lane / 4 < e.rows ? x + static_cast<int64_t>(lane / 4) * k : nullptr;
  uint8_t* ring = ptx::shared_memory() + warp * kGemvCopies * kCopyBytes + lane * 16;
  const auto copy = [&](int tile, int stage) {
    if (tile < last) {
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        ptx::cp_async<16>(ring + (stage * kCopies + i) * kCopyBytes,
                          tiles + static_cast<int64_t>(tile) * kTileValues + i * kCopyBytes);
      }
    }
    ptx::cp_async_commit();
  };

#pragma unroll
  for (int stage = 0; stage < kStages; ++stage) copy(first + stage * kGemvWarps, stage);
  const int mine = threadIdx.x % (kRows / kWidth) * kWidth, p = threadIdx.x / (kRows / kWidth);
  const auto terms = channel_terms<kWidth>(e, channel + mine);  // while the weights are on their way
  S sums[kRows / 16][4] = {};
  GemvColumns<X> columns;
  columns.template load<kPiece>(row, first * 64 + lane % 4 * 16, k);
  for (int tile = first, stage = 0; tile < last; tile += kGemvWarps, stage = (stage + 1) & (kStages - 1)) {
    ptx::cp_async_wait<kStages - 1>();
    uint32_t b[GemvColumns<X>::kParts == 1 ? GemvColumns<X>::kWords : 24];
    columns.take(b);
    columns.template load<kPiece>(row, (tile + kGemvWarps) * 64 + lane % 4 * 16, k);
    const auto* weights = reinterpret_cast<const uint4*>(ring + stage * kCopies * kCopyBytes);
#pragma unroll
    for (int i = 0; i < kCopies; i += 2) {
      const uint4 low = weights[i * kWarp], high = weights[(i + 1) * kWarp];
      multiply<X>(sums[i / 2], {low.x, low.y, low.z, low.w}, {high.x, high.y, high.z, high.w}, b);
    }
    copy(tile + kStages * kGemvWarps, stage);
  }

  __syncthreads();  // the rings become the sums
  auto* shared = reinterpret_cast<S*>(ptx::shared_memory());
#pragma unroll
  for (int i = 0; i < kRows / 16; ++i) {
#pragma unroll
    for (int d = 0; d < 4; ++d) {
      const int column = lane % 4 * 2 + d % 2;
      shared[(warp * kGemvColumns + column) * gemv_row<kRows> + i * 16 + d / 2 * 8 + lane / 4] = sums[i][d];
    }
  }
  __syncthreads();
  if (p >= e.rows || terms.count <= 0) return;
  Pack<S, kWidth> total{};
#pragma unroll
  for (int i = 0; i < kGemvWarps; ++i) {
    const auto part =
        *reinterpret_cast<const Pack<S, kWidth>*>(shared + (i * kGemvColumns + p) * gemv_row<kRows> + mine);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) total.values[j] += part.values[j];
  }
  if (partial == nullptr) {
    finish(e, total.values, p, terms);
  } else {
    store(partial, (static_cast<int64_t>(split) * e.rows + p) * e.channels + terms.channel, terms.whole, terms.count,
          total);
  }
}

// Adds the partial sums [splits, rows, channels], split by split, and finishes them; a thread takes 4 channels of a
// row.
template <typename S>
__global__ void __launch_bounds__(256) finish_gemv_kernel(const S* partial, int splits, Epilogue e) {
  constexpr int kWidth = 4;
  const int groups = (e.channels + kWidth - 1) / kWidth;
  const int id = blockIdx.x * blockDim.x + threadIdx.x, row = id / groups;
  if (row >= e.rows) return;
  const auto terms = channel_terms<kWidth>(e, id % groups * kWidth);
  S sums[kWidth] = {};
  for (int split = 0; split < splits; ++split) {
    const S* from = partial + (int64_t{split} * e.rows + row) * e.channels + terms.channel;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      if (i < terms.count) sums[i] += from[i];
    }
  }
  finish(e, sums, row, terms);
}

// x: [e.rows <= 8, k] contiguous; w: packed int8 [e.channels, k], without tile skip; workspace: what gemv_workspace
// says, 32-byte aligned. int32 sums must not overflow.
template <typename X>
void gemv(const X* x, int64_t k, const Weights& w, const Epilogue& e, const GemvPlan& plan, void* workspace,
          cudaStream_t stream) {
  using S = typename ptx::Sum<X>::type;
  const bool wide = aligned(x, 16) && k * sizeof(X) % 16 == 0;
  constexpr int kElement = sizeof(X);
  auto* kernel = wide ? gemv_kernel<X, 16, 16> : gemv_kernel<X, 16, kElement>;
  if (plan.rows == 32) kernel = wide ? gemv_kernel<X, 32, 16> : gemv_kernel<X, 32, kElement>;
  if constexpr (gemv_most_rows(kElement) == 64) {
    if (plan.rows == 64) kernel = wide ? gemv_kernel<X, 64, 16> : gemv_kernel<X, 64, kElement>;
  }
  auto* partial = plan.splits > 1 ? static_cast<S*>(workspace) : nullptr;
  launch(kernel, ceil_div(e.channels, plan.rows) * plan.splits, kGemvThreads, kGemvShared, stream, w, x,
         static_cast<int>(k), e, plan.splits, partial);
  if (plan.splits == 1) return;
  const int64_t groups = ceil_div(e.channels, 4) * e.rows;
  launch(finish_gemv_kernel<S>, ceil_div(groups, 256), 256, 0, stream, static_cast<const S*>(partial), plan.splits, e);
}

}  // namespace torchaccel::cuda
