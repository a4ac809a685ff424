// What the lanes of a warp do together, as the PTX manual defines it for the fragments of ptx.cuh.
#include <algorithm>

#include "numbers.h"

namespace emulate {

namespace {

constexpr int kRows = 16, kColumns = 8, kWords = 16;  // words of 4 bytes: at most 64 bytes of K

const Fragments& fragments(void* const* lanes, int lane) { return *static_cast<Fragments*>(lanes[lane]); }

// W: of the weights, X: of the activations. Sparse: K is twice what `a` holds, and `metadata` says where.
template <typename W, typename X, int kBytesK>
struct Product {
  static constexpr int kDepth = kBytesK / sizeof(X);
  W a[kRows][kDepth] = {};
  X b[kColumns][kDepth];

  void load_b(void* const* lanes) {
    for (int lane = 0; lane < kWarp; ++lane) {
      for (int i = 0; i < kBytesK / 16; ++i) {
        std::memcpy(reinterpret_cast<char*>(b[lane / 4]) + 16 * i + lane % 4 * 4, &fragments(lanes, lane).b[i], 4);
      }
    }
  }

  void add(void* const* lanes) const {
    for (int lane = 0; lane < kWarp; ++lane) {
      uint32_t (&d)[4] = static_cast<Fragments*>(lanes[lane])->d;
      for (int i = 0; i < 4; ++i) {
        add_to<X>(&d[i], dot(a[lane / 4 + i / 2 * 8], b[lane % 4 * 2 + i % 2], kDepth));
      }
    }
  }
};

// The 32 bytes a row that `a` holds, in order.
template <typename W>
void load_a(void* const* lanes, W (&a)[kRows][32 / sizeof(W)]) {
  for (int lane = 0; lane < kWarp; ++lane) {
    for (int i = 0; i < 4; ++i) {
      char* row = reinterpret_cast<char*>(a[lane / 4 + i % 2 * 8]);
      std::memcpy(row + i / 2 * 16 + lane % 4 * 4, &fragments(lanes, lane).a[i], 4);
    }
  }
}

template <typename W, typename X>
void run_mma(void* const* lanes) {
  Product<W, X, 32> product;
  load_a<W>(lanes, product.a);
  product.load_b(lanes);
  product.add(lanes);
}

template <typename W, typename X, int kSelector>
void run_mma_sparse(void* const* lanes) {
  Product<W, X, 64> product;
  W kept[kRows][32 / sizeof(W)];
  load_a<W>(lanes, kept);
  const auto metadata = [lanes](int lane) { return fragments(lanes, lane).metadata; };
  for (int row = 0; row < kRows; ++row) {
    spread<X>(kept[row], product.a[row], product.kDepth, row, kSelector, metadata);
  }
  product.load_b(lanes);
  product.add(lanes);
}

// The lane that a word goes to is the one that reads it.
template <int kMatrices>
void run_load_matrices(void* const* lanes) {
  const int last = running.thread, first = last / kWarp * kWarp;
  for (int matrix = 0; matrix < kMatrices; ++matrix) {
    int passes[8] = {};
    for (int i = 0; i < 8; ++i) {
      const char* row = static_cast<const char*>(static_cast<Rows*>(lanes[matrix * 8 + i])->row);
      const auto chunk = reinterpret_cast<uintptr_t>(row) / 16;
      if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
        fail(waiting_at(), "ldmatrix: row %d of matrix %d is not aligned to 16 bytes", i, matrix);
      }
      bool again = false;  // one read serves equal addresses
      for (int j = 0; j < i; ++j) again |= static_cast<Rows*>(lanes[matrix * 8 + j])->row == row;
      if (!again) ++passes[chunk % 8];
      for (int t = 0; t < 4; ++t) {
        running.thread = first + 4 * i + t;
        check_shared(row + 4 * t, 4, false, waiting_at());
        std::memcpy(&static_cast<Rows*>(lanes[4 * i + t])->d[matrix], row + 4 * t, 4);
      }
    }
    count_bank_conflicts(*std::max_element(passes, passes + 8) - 1);
  }
  running.thread = last;
}

void run_shuffle(void* const* lanes) {
  for (int lane = 0; lane < kWarp; ++lane) {
    auto* mine = static_cast<Shuffle*>(lanes[lane]);
    if (mine->mask != ~0u) fail(waiting_at(), "a shuffle with mask %#x, emulated are those of all lanes", mine->mask);
    mine->got = static_cast<Shuffle*>(lanes[mine->from % kWarp])->given;
  }
}

constexpr Collective kMma[] = {{"mma", run_mma<int8_t, int8_t>},
                               {"mma", run_mma<int8_t, uint8_t>},
                               {"mma", run_mma<__half, __half>},
                               {"mma", run_mma<__nv_bfloat16, __nv_bfloat16>}};
constexpr Collective kSparse[][2] = {
    {{"mma_sp", run_mma_sparse<int8_t, int8_t, 0>}, {}},
    {{"mma_sp", run_mma_sparse<int8_t, uint8_t, 0>}, {}},
    {{"mma_sp", run_mma_sparse<__half, __half, 0>}, {"mma_sp", run_mma_sparse<__half, __half, 1>}},
    {{"mma_sp", run_mma_sparse<__nv_bfloat16, __nv_bfloat16, 0>},
     {"mma_sp", run_mma_sparse<__nv_bfloat16, __nv_bfloat16, 1>}}};
constexpr Collective kLoadMatrices[] = {{"ldmatrix_x2", run_load_matrices<2>}, {"ldmatrix_x4", run_load_matrices<4>}};

}  // namespace

const Collective& mma(Type type) { return kMma[static_cast<int>(type)]; }
const Collective& mma_sparse(Type type, int selector) { return kSparse[static_cast<int>(type)][selector]; }
const Collective& load_matrices(int count) { return kLoadMatrices[count / 4]; }
const Collective shuffle = {"a shuffle", run_shuffle};

}  // namespace emulate
