// A meeting point of the threads of one parallel region.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

namespace torchaccel {

// Threads of one parallel region meet here after each step. A thread that runs several parts arrives for all of them.
class Barrier {
 public:
  explicit Barrier(int64_t parts) : parts_(parts) {}

  void arrive(int64_t parts) {
    if (parts == parts_) return;
    const int64_t round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(parts, std::memory_order_acq_rel) + parts == parts_) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins) {
      if (spins > 4000) std::this_thread::yield();  // more threads than cores
    }
  }

 private:
  const int64_t parts_;
  alignas(64) std::atomic<int64_t> arrived_{0};
  alignas(64) std::atomic<int64_t> round_{0};
};

}  // namespace torchaccel
