// Products of a warpgroup, as the PTX manual defines wgmma: asynchronous, in groups, read from shared memory by
// descriptors.
#include <algorithm>
#include <vector>

#include "numbers.h"

namespace emulate {

namespace {

constexpr int kRows = 64, kBytes = 32;  // of weights
constexpr int64_t kFirst = 1024;        // the address of the first byte of shared memory

// One warp's rows of a product, until its wait.
struct Part {
  WarpgroupProduct product;
  void* sums[kWarp];
  uint32_t metadata[kWarp];
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

// Where 16 bytes of a row lie: swizzled by their address.
int64_t find(uint64_t descriptor, int row, int piece) {
  const int64_t start = (descriptor & 0x3fff) << 4, stride = (descriptor >> 32 & 0x3fff) << 4;
  const int64_t pitch = descriptor >> 62 == 1 ? 128 : 64, mask = pitch / 16 - 1;
  const int64_t address = start + row / 8 * stride + row % 8 * pitch + piece * 16;
  return (address ^ (address >> 7 & mask) << 4) - kFirst;
}

// Of b's K: 2:4 weights stand for twice their bytes.
int depth_bytes(const WarpgroupProduct& p) { return p.selector < 0 ? kBytes : 2 * kBytes; }

template <typename Do>
void for_pieces(const WarpgroupProduct& p, const Do& act) {
  for (int row = 0; row < kRows; ++row) {
    for (int i = 0; i < kBytes / 16; ++i) act(find(p.a, row, i));
  }
  for (int row = 0; row < p.columns; ++row) {
    for (int i = 0; i < depth_bytes(p) / 16; ++i) act(find(p.b, row, i));
  }
}

void load_row(uint64_t descriptor, int row, int bytes, void* to) {
  for (int i = 0; i < bytes / 16; ++i) {
    std::memcpy(static_cast<char*>(to) + 16 * i, emulate_shared_memory + find(descriptor, row, i), 16);
  }
}

// Adds the product of the 16 rows of warp `warp` of the warpgroup.
template <typename W, typename X>
void multiply(Part& part, int warp) {
  constexpr int kMost = 2 * kBytes / sizeof(X);
  const WarpgroupProduct& p = part.product;
  const int depth = depth_bytes(p) / static_cast<int>(sizeof(X));
  W weights[16][kMost] = {};
  for (int row = 0; row < 16; ++row) {
    W kept[kBytes / sizeof(W)];
    load_row(p.a, warp * 16 + row, kBytes, kept);
    if (p.selector < 0) {
      std::memcpy(weights[row], kept, kBytes);
    } else {
      spread<X>(kept, weights[row], depth, row, p.selector, [&](int lane) { return part.metadata[lane]; });
    }
  }
  for (int column = 0; column < p.columns; ++column) {
    X x[kMost];
    load_row(p.b, column, depth_bytes(p), x);
    for (int row = 0; row < 16; ++row) {
      // As mma's d: the lane that holds row % 8 and its pair of columns.
      char* sums = static_cast<char*>(part.sums[row % 8 * 4 + column % 8 / 2]);
      add_to<X>(sums + 4 * (column / 8 * 4 + row / 8 * 2 + column % 2), dot(weights[row], x, depth));
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
    Part part{first, {}, {}, w.groups, running.early};
    for (int i = 0; i < kWarp; ++i) {
      part.sums[i] = product_of(lanes[warp * kWarp + i]).sums;
      part.metadata[i] = product_of(lanes[warp * kWarp + i]).metadata;
    }
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
