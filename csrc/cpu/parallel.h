// Work split over torch's own threads, and the scratch memory of each.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <cstdlib>
#include <new>

namespace torchaccel {

// Memory of one call on one thread, aligned to 64 bytes. Up to 4 MiB stay with the thread for its next call; what is
// larger is freed at once.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) {
    if (bytes <= kKeptBytes) {
      thread_local Kept kept;
      if (bytes > kept.bytes) {
        std::free(kept.data);
        kept.bytes = 0;
        kept.data = allocate(bytes);
        kept.bytes = bytes;
      }
      data_ = kept.data;
    } else {
      data_ = owned_ = allocate(bytes);
    }
  }
  ~Scratch() { std::free(owned_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  uint8_t* data() const { return data_; }

 private:
  static constexpr int64_t kKeptBytes = 4 << 20;
  struct Kept {
    uint8_t* data = nullptr;
    int64_t bytes = 0;
    ~Kept() { std::free(data); }
  };
  static uint8_t* allocate(int64_t bytes) {
    void* p = std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64));
    if (p == nullptr) throw std::bad_alloc();
    return static_cast<uint8_t*>(p);
  }
  uint8_t* data_ = nullptr;
  uint8_t* owned_ = nullptr;
};

// Threads worth waking for `cycles` of work in all: a wake-up costs some 10^4 of them.
inline int64_t threads_for(double cycles) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t useful = 1 + static_cast<int64_t>(cycles / 2e4);
  return useful < threads ? useful : threads;
}

// f(part) for each part in [0, parts), one part a thread.
template <class F>
void run_parts(int64_t parts, const F& f) {
  if (parts == 1) return f(int64_t{0});
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) f(part);
  });
}

// f(begin, end) over equal shares of [0, count), `cycles` of work in all.
template <class F>
void run_shares(int64_t count, double cycles, const F& f) {
  int64_t parts = threads_for(cycles);
  parts = parts < count ? parts : count;
  if (count > 0) run_parts(parts, [&](int64_t part) { f(count * part / parts, count * (part + 1) / parts); });
}

}  // namespace torchaccel
