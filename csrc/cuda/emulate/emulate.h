// Runs CUDA kernels on the CPU, for tests: g++ compiles the same .cuh files against the headers of this folder.
//
// One OS thread runs the blocks in turn, each CUDA thread as a ucontext fiber. A fiber runs until a barrier or a warp
// collective; then another one goes on, picked at random, since a GPU promises no order. All waiting with nobody to
// release them is a deadlock, which ends the process with a message. Shared memory is static and not filled with
// garbage between blocks, and copies land at once: reads of what was never written, and late copies, are left to a real
// GPU.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <utility>
#include <vector>

namespace emulate {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};

constexpr int kWarp = 32;
constexpr size_t kStack = 128 << 10;

struct Fiber {
  ucontext_t context{};
  std::vector<char> stack = std::vector<char>(kStack);
  Dim3 thread;
  enum { kReady, kAtBarrier, kAtWarp, kDone } state = kDone;
  uint32_t deposit = 0;  // what the lane gave to the collective under way
};

struct Machine {
  std::vector<Fiber> fibers;
  ucontext_t scheduler{};
  int threads = 0, running = 0;
  Dim3 block, grid;
  void (*entry)(void*) = nullptr;
  void* arguments = nullptr;
  std::minstd_rand order{1};
};

inline Machine& machine() {
  static Machine made;
  return made;
}

inline Fiber& self() { return machine().fibers[machine().running]; }

// Gives way until the scheduler has released the fiber from `state`.
inline void wait(decltype(Fiber::state) state) {
  Fiber& fiber = self();
  fiber.state = state;
  swapcontext(&fiber.context, &machine().scheduler);
}

inline void body() {
  machine().entry(machine().arguments);
  self().state = Fiber::kDone;
  swapcontext(&self().context, &machine().scheduler);
}

// Releases the fibers [first, last) if all that live wait in `state`; whether any did.
inline bool release(int first, int last, decltype(Fiber::state) state) {
  Machine& m = machine();
  int waiting = 0;
  for (int i = first; i < last; ++i) {
    if (m.fibers[i].state == Fiber::kDone) continue;
    if (m.fibers[i].state != state) return false;
    ++waiting;
  }
  for (int i = first; i < last; ++i) {
    if (m.fibers[i].state == state) m.fibers[i].state = Fiber::kReady;
  }
  return waiting > 0;
}

inline void run_block() {
  Machine& m = machine();
  for (int i = 0; i < m.threads; ++i) {
    Fiber& fiber = m.fibers[i];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;
    fiber.thread = {static_cast<unsigned>(i), 0, 0};
    fiber.state = Fiber::kReady;
    makecontext(&fiber.context, body, 0);
  }
  for (;;) {
    int ready = 0;
    const int start = static_cast<int>(m.order() % m.threads);
    for (int i = 0; i < m.threads; ++i) {
      m.running = (start + i) % m.threads;
      if (self().state != Fiber::kReady) continue;
      ++ready;
      swapcontext(&m.scheduler, &self().context);
    }
    bool moved = ready > 0;
    for (int first = 0; first < m.threads; first += kWarp) {
      moved |= release(first, first + kWarp < m.threads ? first + kWarp : m.threads, Fiber::kAtWarp);
    }
    moved |= release(0, m.threads, Fiber::kAtBarrier);
    if (moved) continue;
    for (int i = 0; i < m.threads; ++i) {
      if (m.fibers[i].state == Fiber::kDone) continue;
      std::fprintf(stderr, "emulate: deadlock in block %u, thread %d waits at a %s\n", m.block.x, i,
                   m.fibers[i].state == Fiber::kAtBarrier ? "barrier" : "warp collective");
      std::abort();
    }
    return;
  }
}

// The value that lane `from(lane)` of the warp gave. Every living lane must come: partial masks are not emulated.
template <typename From>
uint32_t exchange(uint32_t value, From from) {
  Machine& m = machine();
  self().deposit = value;
  wait(Fiber::kAtWarp);
  const int lane = m.running % kWarp;
  const uint32_t got = m.fibers[m.running - lane + from(lane)].deposit;
  wait(Fiber::kAtWarp);  // nobody deposits anew before all have read
  return got;
}

template <typename Kernel>
void launch(int64_t blocks, int threads, Kernel kernel) {
  Machine& m = machine();
  if (static_cast<int>(m.fibers.size()) < threads) m.fibers.resize(threads);
  m.threads = threads;
  m.grid = {static_cast<unsigned>(blocks), 1, 1};
  m.arguments = &kernel;
  m.entry = [](void* given) { (*static_cast<Kernel*>(given))(); };
  for (int64_t block = 0; block < blocks; ++block) {
    m.block = {static_cast<unsigned>(block), 0, 0};
    run_block();
  }
}

}  // namespace emulate
