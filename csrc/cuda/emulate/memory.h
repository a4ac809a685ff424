// The emulated machine's memory: what a thread may touch, and when.
#pragma once

#include <cstddef>
#include <cstdint>

#include "emulate.h"

namespace emulate {

constexpr int kMaxThreads = 1024;
constexpr int kMaxShared = 227 << 10;
constexpr size_t kStack = 128 << 10;

// Reports and abandons the launch; does not return when a fiber runs. `at` is an address in the kernel's code.
__attribute__((format(printf, 2, 3))) void fail(const void* at, const char* format, ...);

// Times of what orders accesses: an access before `since` is seen by all (by the warp).
struct Clock {
  uint32_t now = 1;  // grows with each barrier and __syncwarp
  uint32_t launch = 0, block = 0, barrier = 0, warp[kMaxThreads / kWarp] = {};  // when they began, or last met
  uint32_t fenced[kMaxThreads] = {}, visible[kMaxThreads] = {};  // the last fence.proxy.async; at the last barrier
};

struct Running {
  bool in_fiber = false;
  int thread = -1;            // -1: the host's
  int64_t accesses_left = 0;  // of the launch
  bool early = false;         // whether what is asynchronous happens as early as it may, else as late
  char* stacks = nullptr;     // of all threads
  int64_t shared = 0;         // bytes of the launch
  const char* arguments = nullptr;
  size_t arguments_bytes = 0;
  Clock clock;
};
extern Running running;

// Of a run, which may launch several kernels. kind: 0 an input, 1 an output, 2 a workspace.
void add_buffer(const void* start, int64_t bytes, int64_t kind, const char* name);
void check_outputs();  // all written?
void forget_memory(bool abandoned);

void start_memory(const void* kernel);  // of a launch
void poison_shared();                   // of a block

// Called before the access.
void check(const void* address, size_t bytes, bool write, const void* at);
// The same for shared memory alone.
void check_shared(const void* address, size_t bytes, bool write, const void* at);
void start_copy(const void* shared, const void* global, int bytes, const void* at);
void land_copy(const void* shared, int bytes);
// What products read from their start to their end, by each warp; `offset` from the start of shared memory.
void start_read(int64_t offset, int bytes, const void* at);
void end_read(int64_t offset, int bytes);

// Of products: those of the last block; those of the warp that runs.
void forget_products();
size_t products_under_way();

// For collectives: where the fiber called, and passes of ldmatrix beyond the first.
const void* waiting_at();
void count_bank_conflicts(int count);

inline void hook(const void* address, size_t bytes, bool write, const void* at) {
  if (!running.in_fiber) return;
  if (--running.accesses_left < 0) return fail(at, "seems to be endless: too many accesses");
  const auto from_stacks = static_cast<size_t>(static_cast<const char*>(address) - running.stacks);
  if (from_stacks >= kMaxThreads * kStack) check(address, bytes, write, at);
}

}  // namespace emulate
