// For small kernels that each commit a sin, or with `sin` off do the same cleanly, to see that the emulator tells them
// apart. Each copies 64 words of `in` to `out` by two warps.
#pragma once

#include <cstring>

#include "launch.cuh"
#include "ptx.cuh"

namespace torchaccel::cuda {

struct Memory {
  const int *in, *zero;  // zero: [1]
  int *out, *scratch;    // scratch: a workspace of 128 words, of which an earlier launch zeroed 64
};

constexpr int kThreads = 64;
constexpr int kSharedBytes = 2048;  // of most sins

inline int* words() { return reinterpret_cast<int*>(ptx::shared_memory()); }
inline int me() { return static_cast<int>(threadIdx.x); }

inline void clear(int* scratch) { scratch[me()] = 0; }

struct Sin {
  const char* name;
  void (*kernel)(Memory, bool);
  int blocks = 1, threads = kThreads, shared = kSharedBytes;
};

// Whether there is one of that name, which then has run.
template <size_t kCount>
bool commit(const Sin (&sins)[kCount], const char* name, bool sin, const Memory& memory) {
  for (const Sin& each : sins) {
    if (std::strcmp(each.name, name) != 0) continue;
    launch(clear, 1, kThreads, 0, nullptr, memory.scratch);
    launch(each.kernel, each.blocks, each.threads, each.shared, nullptr, memory, sin);
    return true;
  }
  return false;
}

}  // namespace torchaccel::cuda
