// A CPU that runs CUDA kernels, for tests: g++ compiles the same .cuh files against the headers of this folder. It is a
// hostile machine: what a GPU is free to do, it does, and what a kernel must not do, it reports.
//
// Threads of a block are fibers of one OS thread, blocks run in turn; the order of both is forward, reversed or random.
// Kernels are compiled with -fsanitize=thread, but hooks.cpp takes the place of the sanitizer's library: every load and
// store of every fiber comes by with its address before it happens. The launch is abandoned, and `emulate_report` says
// why and where, at:
//   global memory: accesses outside of the registered buffers, writes to inputs, outputs written twice or read,
//     workspaces read before they are written, or written and read (or written) by threads that nothing orders
//   shared memory, poisoned before each block: accesses outside of what the launch asked for; reads of bytes that the
//     block never wrote; two threads at one byte, one of them writing, without a barrier between them
//   cp.async: any access to bytes under way; copies not waited for. They land in the issuer's wait and no sooner, or,
//     in the other mode, at once
//   wgmma: writes to what products under way read; reads of bytes whose writers had no fence.proxy.async before the
//     barrier; sums with no wgmma.fence before a group's first product; products not waited for. Each warp's rows are
//     multiplied in its wait and no sooner, or, in the other mode, at once
//   addresses that are not aligned; divergent collectives and barriers; deadlocks; sparse metadata out of order;
//     overflows, shifts and array indices out of range; endless loops
// __syncthreads and __syncwarp order memory, shuffles and other collectives do not.
//
// To test a kernel: write tests/csrc/cuda/X.cpp, extern "C" functions over the host functions of X.cuh (integers as
// int64_t, floats as float), and call them from a test by harness.py, which compiles them and has the details.
// quantize_int8.cpp and test_emulated_quantize_int8.py show how.
//
// Not emulated: atomics and any order between blocks of one launch, partial warp masks, which instruction lanes meet at
// (only its kind is compared), bank conflicts other than ldmatrix's, caches, time.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emulate {

constexpr int kWarp = 32, kWarpgroup = 4 * kWarp;

struct Index {
  unsigned x;
};

// Runs body(arguments) in each thread of each block; `kernel` names it in reports.
void launch(const void* kernel, int64_t blocks, int threads, int64_t shared, void (*body)(const void*),
            const void* arguments, size_t bytes);

// Instructions of the fiber that runs.
void barrier();
void sync_warp();

// What the 32 lanes of a warp do together, or the 128 of a warpgroup: the last to come runs it on what all gave.
struct Collective {
  const char* name;
  void (*run)(void* const* lanes);
  int lanes = kWarp;
};
void collective(const Collective& what, void* given);

void copy_async(void* shared, const void* global, int bytes);
void commit_copies();
void wait_copies(int pending);

// Types of mma's B operand.
enum class Type { kInt8, kUint8, kHalf, kBfloat16 };

struct Fragments {
  uint32_t d[4], a[4], b[4], metadata;
};
const Collective& mma(Type type);
const Collective& mma_sparse(Type type, int selector);

// Products of a warpgroup: what all of it gives, and of a lane its sums and metadata. Descriptors have the bits of
// wgmma's.
struct WarpgroupProduct {
  Type type;
  int columns;
  uint64_t a, b;
  void* sums;         // [columns / 8][4]
  int selector;       // of 2:4 weights, else -1
  uint32_t metadata;  // theirs
};
uint64_t describe(const void* rows, int bytes);
void fence_proxy();
void fence_products();
void start_product(WarpgroupProduct product);
void commit_products();
void wait_products(int pending);

struct Rows {
  uint32_t d[4];
  const void* row;
};
const Collective& load_matrices(int count);

struct Shuffle {
  uint64_t given, got;
  int from;       // the lane to take it from
  unsigned mask;  // which lanes take part: all, others are not emulated
};
extern const Collective shuffle;

}  // namespace emulate

// Constants while a thread runs, which the runtime sets at each switch.
extern const emulate::Index threadIdx, blockIdx, blockDim, gridDim;
extern uint8_t* const emulate_shared_memory;
