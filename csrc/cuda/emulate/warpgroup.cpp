// Products of a warpgroup, as the PTX manual defines wgmma: asynchronous, in groups, read from shared memory by
// descriptors.
#include <algorithm>
#include <cstring>
#include <vector>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "memory.h"

namespace emulate {

namespace {

constexpr int kRows = 64, kBytes = 32;  // of weights, and of K
constexpr int64_t kFirst = 1024;        // the address of the first byte of shared memory

// One warp's rows of a product, until its wait.
struct Part {
  WarpgroupProduct product;
  void* sums[kWarp];
  int group;
  bool done;
};

struct Warp {
  std::vector<Part> parts;  // oldest first
  int groups = 0;           // committed
  bool fenced = false;      // since the last commit
};
Warp warps[kMaxThreads / kWarp];

Warp& mine() { return warps[running.thread / kWarp]; }

// Where a row's 32 bytes lie: in two pieces of 16, swizzled by the address.
struct Row {
  int64_t piece[2];
};

Row find_row(uint64_t descriptor, int row) {
  const int64_t start = (descriptor & 0x3fff) << 4, stride = (descriptor >> 32 & 0x3fff) << 4;
  const int64_t pitch = descriptor >> 62 == 1 ? 128 : 64, mask = pitch / 16 - 1;
  Row found;
  for (int i = 0; i < 2; ++i) {
    const int64_t address = start + row / 8 * stride + row % 8 * pitch + i * 16;
    found.piece[i] = (address ^ (address >> 7 & mask) << 4) - kFirst;
  }
  return found;
}

template <typename Do>
void for_pieces(const WarpgroupProduct& p, const Do& act) {
  for (int i = 0; i < kRows + p.columns; ++i) {
    const Row row = i < kRows ? find_row(p.a, i) : find_row(p.b, i - kRows);
    for (const int64_t offset : row.piece) act(offset);
  }
}

inline int to_number(int8_t x) { return x; }
inline int to_number(uint8_t x) { return x; }
inline float to_number(__half x) { return __half2float(x); }
inline float to_number(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
void load_row(const Row& row, T (&to)[kBytes / sizeof(T)]) {
  for (int i = 0; i < 2; ++i) {
    std::memcpy(reinterpret_cast<char*>(to) + 16 * i, emulate_shared_memory + row.piece[i], 16);
  }
}

// Adds the product of the 16 rows of warp `warp` of the warpgroup.
template <typename W, typename X>
void multiply(Part& part, int warp) {
  constexpr int kDepth = kBytes / sizeof(X);
  using Sum = std::conditional_t<sizeof(X) == 1, int, double>;
  W weights[16][kDepth];
  for (int row = 0; row < 16; ++row) load_row(find_row(part.product.a, warp * 16 + row), weights[row]);
  for (int column = 0; column < part.product.columns; ++column) {
    X x[kDepth];
    load_row(find_row(part.product.b, column), x);
    for (int row = 0; row < 16; ++row) {
      Sum sum = 0;
      for (int k = 0; k < kDepth; ++k) sum += static_cast<Sum>(to_number(weights[row][k])) * to_number(x[k]);
      // As mma's d: the lane that holds row % 8 and its pair of columns.
      char* word =
          static_cast<char*>(part.sums[row % 8 * 4 + column % 8 / 2]) + 4 * (column / 8 * 4 + row / 8 * 2 + column % 2);
      if constexpr (sizeof(X) == 1) {
        uint32_t total;
        std::memcpy(&total, word, 4);
        total += static_cast<uint32_t>(sum);
        std::memcpy(word, &total, 4);
      } else {
        float total;
        std::memcpy(&total, word, 4);
        total = static_cast<float>(total + sum);
        std::memcpy(word, &total, 4);
      }
    }
  }
}

void run(Part& part, int warp) {
  switch (part.product.type) {
    case Type::kInt8:
      return multiply<int8_t, int8_t>(part, warp);
    case Type::kUint8:
      return multiply<int8_t, uint8_t>(part, warp);
    case Type::kHalf:
      return multiply<__half, __half>(part, warp);
    case Type::kBfloat16:
      return multiply<__nv_bfloat16, __nv_bfloat16>(part, warp);
  }
}

const WarpgroupProduct& product_of(void* lane) { return *static_cast<WarpgroupProduct*>(lane); }

void run_start(void* const* lanes) {
  const WarpgroupProduct& first = product_of(lanes[0]);
  for (int i = 1; i < kWarpgroup; ++i) {
    const WarpgroupProduct& other = product_of(lanes[i]);
    if (other.a != first.a || other.b != first.b) fail(waiting_at(), "wgmma: descriptors differ in the warpgroup");
  }
  for (const uint64_t descriptor : {first.a, first.b}) {
    const uint64_t mode = descriptor >> 62, pitch = mode == 1 ? 128 : 64;
    if (mode == 0 || mode == 3) fail(waiting_at(), "wgmma: swizzle mode %ld is not emulated", static_cast<long>(mode));
    const uint64_t ahead = ((descriptor & 0x3fff) << 4) % (8 * pitch);
    if (ahead >= pitch || ahead % kBytes != 0 || (descriptor >> 49 & 7) != 0) {
      fail(waiting_at(), "wgmma: an operand begins %ld bytes behind a group of eight rows", static_cast<long>(ahead));
    }
  }
  for_pieces(first, [](int64_t offset) { start_read(offset, 16, waiting_at()); });
  const int base = running.thread / kWarpgroup * (kWarpgroup / kWarp);
  for (int warp = 0; warp < kWarpgroup / kWarp; ++warp) {
    Warp& w = warps[base + warp];
    if (!w.fenced) fail(waiting_at(), "wgmma: no wgmma.fence since the last group of products");
    Part part{first, {}, w.groups, running.early};
    for (int i = 0; i < kWarp; ++i) part.sums[i] = product_of(lanes[warp * kWarp + i]).sums;
    if (running.early) run(part, warp);
    w.parts.push_back(part);
  }
}

constexpr Collective kStart = {"wgmma", run_start, kWarpgroup};
constexpr Collective kFence = {"wgmma.fence", [](void* const*) { mine().fenced = true; }};
constexpr Collective kCommit = {"wgmma.commit_group", [](void* const*) {
                                  ++mine().groups;
                                  mine().fenced = false;
                                }};

void run_wait(void* const* lanes) {
  Warp& warp = mine();
  const int until = warp.groups - *static_cast<const int*>(lanes[0]);
  size_t ended = 0;
  for (; ended < warp.parts.size() && warp.parts[ended].group < until; ++ended) {
    Part& part = warp.parts[ended];
    if (!part.done) run(part, running.thread / kWarp % (kWarpgroup / kWarp));
    for_pieces(part.product, [](int64_t offset) { end_read(offset, 16); });
  }
  warp.parts.erase(warp.parts.begin(), warp.parts.begin() + static_cast<std::ptrdiff_t>(ended));
}
constexpr Collective kWait = {"wgmma.wait_group", run_wait};

}  // namespace

uint64_t describe(const void* rows, int bytes) {
  const auto address = static_cast<uint64_t>(static_cast<const uint8_t*>(rows) - emulate_shared_memory + kFirst);
  return (address & 0x3ffff) >> 4 | static_cast<uint64_t>(8 * bytes) >> 4 << 32 | uint64_t{bytes == 64 ? 2u : 1u} << 62;
}

void fence_proxy() { running.clock.fenced[running.thread] = running.clock.now++; }

void fence_products() { collective(kFence, nullptr); }

void start_product(WarpgroupProduct product) { collective(kStart, &product); }

void commit_products() { collective(kCommit, nullptr); }

void wait_products(int pending) { collective(kWait, &pending); }

void forget_products() { std::fill(std::begin(warps), std::end(warps), Warp{}); }

size_t products_under_way() { return mine().parts.size(); }

}  // namespace emulate
