// The products that are compiled: each format, operand and type with its tilings. Free of torch headers.
//
// Tilings are ordered from large to small. Registers allow `kBlocks` of them on a multiprocessor; the stages fit the
// shared memory of an A100 and an H100, the smaller ones that of every device from 8.0 on.
#pragma once

#include <functional>

#include "product.cuh"

namespace torchaccel::cuda {

using Tiling128x256 = Tiling<128, 256, 2, 4, 4, 1>;
using Tiling128x128 = Tiling<128, 128, 2, 4, 4, 2>;
using Tiling128x128Roomy = Tiling<128, 128, 2, 4, 3, 1>;  // 2:4 holds metadata and longer rows
// One warp for each 32 rows: rows in small steps, lest one more costs a whole tile.
template <int kWarps, int kStages, int kBlocks>
using Tiling64 = Tiling<64, 32 * kWarps, 1, kWarps, kStages, kBlocks>;
using Tiling64x64 = Tiling<64, 64, 2, 2, 4, 4>;
using Tiling64x32 = Tiling<64, 32, 2, 2, 6, 4>;
using Tiling64x16 = Tiling<64, 16, 2, 2, 6, 4>;
// By wgmma: one warpgroup for each 64 channels.
using Warpgroup192x256 = WarpgroupTiling<192, 256, 6, 1>;  // reads least of L2, where its accumulators leave room
using Warpgroup128x256 = WarpgroupTiling<128, 256, 6, 1>;
using Warpgroup128x128 = WarpgroupTiling<128, 128, 6, 2>;
using Warpgroup64x256 = WarpgroupTiling<64, 256, 5, 2>;
using Warpgroup64x128 = WarpgroupTiling<64, 128, 5, 3>;
using Warpgroup64x64 = WarpgroupTiling<64, 64, 6, 4>;
using Warpgroup128x256Roomy = WarpgroupTiling<128, 256, 4, 1>;  // 2:4, as above
using Warpgroup128x128Roomy = WarpgroupTiling<128, 128, 5, 1>;
using Warpgroup64x128Roomy = WarpgroupTiling<64, 128, 4, 2>;
using Warpgroup64x64Roomy = WarpgroupTiling<64, 64, 4, 4>;

template <typename X, typename Operand>
struct DenseTilings {
  using type = Product<Dense<X>, Operand, 16, Tiling128x256, Tiling128x128, Tiling64<8, 3, 1>, Tiling64<4, 4, 3>,
                       Tiling64x64, Tiling64x32, Warpgroup128x256, Warpgroup128x128, Warpgroup64x128, Warpgroup64x64>;
};
template <typename X>
struct DenseTilings<X, Matrix> {
  using type =
      Product<Dense<X>, Matrix, 16, Tiling128x256, Tiling128x128, Tiling64<8, 4, 1>, Tiling64<7, 4, 1>,
              Tiling64<6, 4, 2>, Tiling64<5, 4, 2>, Tiling64<4, 4, 3>, Tiling64<3, 4, 3>, Tiling64x64, Tiling64x32,
              Tiling64x16, Warpgroup192x256, Warpgroup128x256, Warpgroup128x128, Warpgroup64x128, Warpgroup64x64>;
};
template <typename X, typename Operand>
using DenseProduct = typename DenseTilings<X, Operand>::type;

template <typename X, typename Operand>
using Sparse24Product =
    Product<Sparse24<X>, Operand, 16, Tiling128x128Roomy, Tiling64<8, 3, 1>, Tiling64<4, 3, 2>, Tiling64x64,
            Tiling64x16, Warpgroup128x256Roomy, Warpgroup128x128Roomy, Warpgroup64x128Roomy, Warpgroup64x64Roomy>;

// Rows of K that are no whole 16 bytes: pieces of 4 bytes or one element.
template <typename X, typename Operand, int kPiece>
using OddProduct = Product<Dense<X>, Operand, kPiece, Tiling64<4, 4, 3>, Tiling64x16>;

// Tile skip: each band of 64 channels has its own tiles.
template <typename Format, typename... More>
using SkipTilings = Product<Format, Image, 16, Tiling64<8, 3, 1>, Tiling64<4, 3, 2>, Tiling64x64, More...>;
template <typename X>
using SkipDenseProduct = SkipTilings<Dense<X>, Warpgroup64x256, Warpgroup64x128, Warpgroup64x64>;
template <typename X>
using SkipSparse24Product = SkipTilings<Sparse24<X>, Warpgroup64x128Roomy, Warpgroup64x64Roomy>;

// int8 weights by halves, from the rows on that gemv.cuh leaves; pieces as above.
template <typename X, int kPiece>
using WeightOnlyProduct =
    Product<WeightOnly<X>, Matrix, kPiece, Tiling64<4, 3, 2>, Tiling64x64, Tiling64x32, Tiling64x16>;

// One call, whatever serves it. `workspace(bytes)` gives device memory that lives until the call's work is done.
struct Call {
  Weights weights;
  Epilogue epilogue;
  Device device;
  cudaStream_t stream;
  std::function<void*(int64_t)> workspace;
};

// Of a band along K, at least one; with skipped tiles, of an average one.
inline int64_t steps_of(const Weights& w) {
  return std::max<int64_t>(w.columns == nullptr ? w.k_tiles : ceil_div(w.kept, w.bands), 1);
}

template <typename P, typename Operand>
bool run(const Call& call, const Operand& x) {
  const Weights& w = call.weights;
  const int64_t steps = steps_of(w);
  const Plan plan = P::plan(x.rows, call.epilogue.channels, steps, call.device);
  if (plan.tiling < 0) return false;
  void* partial = plan.partial_bytes > 0 ? call.workspace(plan.partial_bytes) : nullptr;
  P::run(plan, w, x, call.epilogue, steps, partial, call.stream);
  return true;
}

// int8 or uint8 by dense int8. Bytes of a row of x (of a pixel, for an Image) decide the pieces.
template <typename X, typename Operand>
bool run_dense_int8(const Call& call, const Operand& x, int row_bytes) {
  if (row_bytes % 16 == 0) return run<DenseProduct<X, Operand>>(call, x);
  if (row_bytes % 4 == 0) return run<OddProduct<X, Operand, 4>>(call, x);
  return run<OddProduct<X, Operand, 1>>(call, x);
}

// Whether what the library holds for the current device was compiled for wgmma: a build may leave sm_90a out.
bool has_warpgroup_code();

// What the sources named products_*.cu hold, a part each; false where no tiling fits the device.
bool run_dense(bool is_signed, const Call& call, const Matrix& x);
bool run_dense(bool is_signed, const Call& call, const Image& x);
bool run_two_four(bool is_signed, const Call& call, const Matrix& x);
bool run_two_four(bool is_signed, const Call& call, const Image& x);
bool run_skip(bool is_signed, bool two_four, const Call& call, const Image& x);
bool run_weight_only(Type type, const Call& call, const Matrix& x);
bool run_half(Type type, bool two_four, const Call& call, const Image& x);

}  // namespace torchaccel::cuda
