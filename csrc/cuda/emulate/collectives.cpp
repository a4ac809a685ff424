// What the lanes of a warp do together, as the PTX manual defines it for the fragments of ptx.cuh.
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "memory.h"

namespace emulate {

namespace {

constexpr int kRows = 16, kColumns = 8, kWords = 16;  // words of 4 bytes: at most 64 bytes of K

inline double to_number(int8_t x) { return x; }
inline float to_number(__half x) { return __half2float(x); }
inline float to_number(__nv_bfloat16 x) { return __bfloat162float(x); }

const Fragments& fragments(void* const* lanes, int lane) { return *static_cast<Fragments*>(lanes[lane]); }

// W: of the weights, X: of the activations. Sparse: K is twice what `a` holds, and `metadata` says where.
template <typename W, typename X, int kBytesK>
struct Product {
  using Sum = std::conditional_t<sizeof(X) == 1, uint32_t, double>;  // integers wrap
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

  static Sum term(W w, X x) {
    if constexpr (sizeof(X) == 1) {
      return static_cast<uint32_t>(int{w} * int{x});
    } else {
      return static_cast<double>(to_number(w)) * to_number(x);
    }
  }

  void add(void* const* lanes) const {
    for (int lane = 0; lane < kWarp; ++lane) {
      uint32_t (&d)[4] = static_cast<Fragments*>(lanes[lane])->d;
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        Sum sum = 0;
        for (int k = 0; k < kDepth; ++k) sum += term(a[row][k], b[column][k]);
        if constexpr (sizeof(X) == 1) {
          d[i] += sum;
        } else {
          float total;
          std::memcpy(&total, &d[i], 4);
          total = static_cast<float>(total + sum);
          std::memcpy(&d[i], &total, 4);
        }
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

// The metadata of the group of four elements `group` of `row`: two places of 2 bits.
template <typename X>
int metadata_of(void* const* lanes, int selector, int row, int group) {
  const int g = row % 8, high = row / 8;
  if (sizeof(X) == 1) {  // 8 groups a lane
    return fragments(lanes, 4 * g + group / 8 * 2 + high).metadata >> group % 8 * 4 & 15;
  }
  return fragments(lanes, 4 * g + selector * 2 + group / 4).metadata >> (high * 16 + group % 4 * 4) & 15;
}

template <typename W, typename X, int kSelector>
void run_mma_sparse(void* const* lanes) {
  Product<W, X, 64> product;
  W kept[kRows][32 / sizeof(W)];
  load_a<W>(lanes, kept);
  for (int row = 0; row < kRows; ++row) {
    for (int group = 0; group < product.kDepth / 4; ++group) {
      const int places = metadata_of<X>(lanes, kSelector, row, group);
      const int first = places & 3, second = places >> 2;
      if (first >= second) {
        fail(waiting_at(), "mma_sp: places %d and %d of row %d, group %d do not rise", first, second, row, group);
      }
      product.a[row][group * 4 + first] = kept[row][group * 2];
      product.a[row][group * 4 + second] = kept[row][group * 2 + 1];
    }
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
