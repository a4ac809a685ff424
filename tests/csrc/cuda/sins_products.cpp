// Sins of a warpgroup's products: their operands in shared memory, their sums, their order.
#include "sins.h"

namespace torchaccel::cuda {

using Sums = int32_t[8][4];

uint8_t* weights() { return ptx::shared_memory(); }
uint8_t* activations() { return weights() + 4096; }

// 64 rows of 64 bytes for each operand, 16 words a thread, to be multiplied after a barrier; and what a sin must do
// too.
void give(const Memory& m) {
  for (int i = 0; i < 16; ++i) words()[me() * 16 + i] = m.in[(me() + i) % 64] & 0x01010101;
  if (me() < kThreads) m.out[me()] = m.in[me()];
}

void start(Sums& d, const uint8_t* a = weights()) {
  ptx::wgmma<int8_t, 64>(d, ptx::descriptor<64>(a), ptx::descriptor<64>(activations()));
}

void finish(Sums& d) {
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>(d);
}

void no_proxy_fence(Memory m, bool sin) {
  Sums d = {};
  give(m);
  if (!sin) ptx::fence_proxy_async();
  __syncthreads();
  ptx::wgmma_fence(d);
  start(d);
  finish(d);
}

void proxy_fence_after_the_barrier(Memory m, bool sin) {
  Sums d = {};
  give(m);
  if (!sin) ptx::fence_proxy_async();
  __syncthreads();
  if (sin) ptx::fence_proxy_async();
  ptx::wgmma_fence(d);
  start(d);
  finish(d);
}

void product_without_barrier(Memory m, bool sin) {
  Sums d = {};
  give(m);
  ptx::fence_proxy_async();
  if (!sin) __syncthreads();
  ptx::wgmma_fence(d);
  start(d);
  finish(d);
}

void prepare(const Memory& m, Sums& d) {
  give(m);
  ptx::fence_proxy_async();
  __syncthreads();
  ptx::wgmma_fence(d);
}

void no_fence_of_sums(Memory m, bool sin) {
  Sums d = {};
  prepare(m, d);
  start(d);
  ptx::wgmma_commit();
  if (!sin) ptx::wgmma_fence(d);
  start(d);
  finish(d);
}

void write_over_operands(Memory m, bool sin) {
  Sums d = {};
  prepare(m, d);
  start(d);
  ptx::wgmma_commit();
  if (sin) words()[me()] = 0;
  ptx::wgmma_wait<0>(d);
}

// Each warp knows of its own products alone.
void write_over_operands_of_another_warp(Memory m, bool sin) {
  Sums d = {};
  prepare(m, d);
  start(d);
  finish(d);
  if (!sin) __syncthreads();
  activations()[me()] = 0;
}

void wait_for_another_group(Memory m, bool sin) {
  Sums d = {};
  prepare(m, d);
  start(d);
  ptx::wgmma_commit();
  if (sin) {
    ptx::wgmma_wait<1>(d);
  } else {
    ptx::wgmma_wait<0>(d);
  }
  __syncthreads();
  words()[me()] = 0;
  ptx::wgmma_wait<0>(d);
}

void products_not_waited_for(Memory m, bool sin) {
  Sums d = {};
  prepare(m, d);
  start(d);
  ptx::wgmma_commit();
  if (!sin) ptx::wgmma_wait<0>(d);
}

void products_not_committed(Memory m, bool sin) {
  Sums d = {};
  prepare(m, d);
  start(d);
  if (!sin) ptx::wgmma_commit();
  ptx::wgmma_wait<0>(d);
}

void rows_off_their_group(Memory m, bool sin) {
  Sums d = {};
  prepare(m, d);
  start(d, weights() + (sin ? 64 : 32));
  finish(d);
}

void descriptors_differ(Memory m, bool sin) {
  Sums d = {};
  prepare(m, d);
  start(d, weights() + (sin && me() >= 64 ? 32 : 0));
  finish(d);
}

void a_warp_is_missing(Memory m, bool sin) {
  Sums d = {};
  prepare(m, d);
  if (!sin || me() < 96) start(d);
  finish(d);
}

// No sin that is reported: sums are there after the wait, and may be before.
void sums_before_the_wait(Memory m, bool sin) {
  Sums d = {};
  prepare(m, d);
  start(d);
  ptx::wgmma_commit();
  const int early = d[0][0];
  ptx::wgmma_wait<0>(d);
  if (me() < kThreads) m.scratch[me()] = m.in[me()] + (sin ? early : d[0][0]);
}

constexpr Sin sin_of(const char* name, void (*kernel)(Memory, bool)) { return {name, kernel, 1, kWarpgroup, 8192}; }

constexpr Sin kSins[] = {
    sin_of("no_proxy_fence", no_proxy_fence),
    sin_of("proxy_fence_after_the_barrier", proxy_fence_after_the_barrier),
    sin_of("product_without_barrier", product_without_barrier),
    sin_of("no_fence_of_sums", no_fence_of_sums),
    sin_of("write_over_operands", write_over_operands),
    sin_of("write_over_operands_of_another_warp", write_over_operands_of_another_warp),
    sin_of("wait_for_another_group", wait_for_another_group),
    sin_of("products_not_waited_for", products_not_waited_for),
    sin_of("products_not_committed", products_not_committed),
    sin_of("rows_off_their_group", rows_off_their_group),
    sin_of("descriptors_differ", descriptors_differ),
    sin_of("a_warp_is_missing", a_warp_is_missing),
    sin_of("sums_before_the_wait", sums_before_the_wait),
};

}  // namespace torchaccel::cuda

extern "C" bool run(const char* name, int64_t sin, const int* in, const int* zero, int* out, int* scratch) {
  using namespace torchaccel::cuda;
  return commit(kSins, name, sin != 0, {in, zero, out, scratch});
}
