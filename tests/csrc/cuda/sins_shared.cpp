// Sins against shared memory: its bounds, its order, the copies to it.
#include "sins.h"

namespace torchaccel::cuda {

void read_without_barrier(Memory m, bool sin) {
  words()[me()] = m.in[me()];
  if (!sin) __syncthreads();
  m.out[63 - me()] = words()[63 - me()];
}

void read_within_warp(Memory m, bool sin) {
  words()[me()] = m.in[me()];
  const int taken = __shfl_xor_sync(0xffffffffu, me(), 1);  // does not order memory
  if (!sin) __syncwarp();
  m.out[taken] = words()[taken];
}

void warp_barrier_for_a_block(Memory m, bool sin) {
  words()[me()] = m.in[me()];
  if (sin) {
    __syncwarp();
  } else {
    __syncthreads();
  }
  m.out[63 - me()] = words()[63 - me()];
}

void write_after_read(Memory m, bool sin) {
  words()[me()] = 0;
  __syncthreads();
  const int zero = words()[63 - me()] + words()[me() ^ 1];
  if (!sin) __syncthreads();
  words()[me()] += m.in[me()];
  m.out[me()] = zero + words()[me()];
}

// Only the second warp writes, after its own reads.
void write_after_read_of_another_warp(Memory m, bool sin) {
  words()[me()] = m.in[me()];
  __syncthreads();
  m.out[me() ^ 32] = words()[me() ^ 32];
  if (!sin) __syncthreads();
  if (me() >= 32) words()[me()] += 1;
}

// Only lanes below the writer read, and the writer.
void write_after_read_of_another_lane(Memory m, bool sin) {
  words()[me()] = m.in[me()];
  __syncthreads();
  m.out[me()] = words()[me()];
  words()[64 + me()] = words()[me() % 32 == 31 ? me() : me() + 1];
  if (!sin) __syncwarp();
  words()[me()] += 1;
}

// The first warp's barrier says nothing to the second.
void warp_barrier_for_another_warp(Memory m, bool sin) {
  if (me() < 32) words()[me()] = m.in[me()];
  __syncwarp();
  if (!sin) __syncthreads();
  m.out[me()] = m.in[me()];
  if (me() >= 32) words()[me()] = words()[me() - 32];
}

// The second warp reads what the first copied.
void barrier_before_wait(Memory m, bool sin) {
  ptx::cp_async<4>(words() + me(), m.in + me());
  ptx::cp_async_commit();
  if (sin) __syncthreads();
  ptx::cp_async_wait<0>();
  if (!sin) __syncthreads();
  m.out[me()] = m.in[me()];
  if (me() >= 32) words()[64 + me()] = words()[me() - 32];
}

void two_writers(Memory m, bool sin) {
  const int given = m.in[me()];
  words()[sin ? me() / 2 : me()] = given;
  m.out[me()] = given;
}

void uninitialized(Memory m, bool sin) {
  if (!sin || me() > 0) words()[me()] = m.in[me()];
  m.out[me()] = words()[me()];
}

void left_by_another_block(Memory m, bool sin) {
  if (!sin || blockIdx.x == gridDim.x - 1) words()[me()] = m.in[me()];
  if (blockIdx.x == 0) m.out[me()] = words()[me()];
}

void past_shared(Memory m, bool sin) {
  const int at = sin && me() == 63 ? kSharedBytes / 4 : me();
  words()[at] = m.in[me()];
  m.out[me()] = words()[at];
}

void read_before_wait(Memory m, bool sin) {
  ptx::cp_async<4>(words() + me(), m.in + me());
  ptx::cp_async_commit();
  if (sin) __syncthreads();
  const int early = sin ? words()[me()] : 0;
  ptx::cp_async_wait<0>();
  m.out[me()] = sin ? early : words()[me()];
}

void wait_for_one_group_of_two(Memory m, bool sin) {
  for (int i = 0; i < 2; ++i) {
    ptx::cp_async<4>(words() + 64 * i + me(), m.in + me());
    ptx::cp_async_commit();
  }
  if (sin) {
    ptx::cp_async_wait<1>();
  } else {
    ptx::cp_async_wait<0>();
  }
  m.out[me()] = words()[64 + me()];
  ptx::cp_async_wait<0>();
}

void wait_before_commit(Memory m, bool sin) {
  ptx::cp_async<4>(words() + me(), m.in + me());
  if (!sin) ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  m.out[me()] = words()[me()];
}

void wait_without_barrier(Memory m, bool sin) {
  ptx::cp_async<4>(words() + me(), m.in + me());
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  if (!sin) __syncthreads();
  m.out[me()] = words()[me()] + words()[63 - me()] - m.in[63 - me()];
}

void copy_over_what_others_read(Memory m, bool sin) {
  words()[me()] = m.in[me()];
  __syncthreads();
  m.out[63 - me()] = words()[63 - me()];
  if (!sin) __syncthreads();
  ptx::cp_async<4>(words() + me(), m.in + me());
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
}

void write_over_a_copy(Memory m, bool sin) {
  ptx::cp_async<4>(words() + me(), m.in + me());
  ptx::cp_async_commit();
  if (sin) words()[me()] = 0;
  ptx::cp_async_wait<0>();
  m.out[me()] = words()[me()];
}

void copy_not_waited_for(Memory m, bool sin) {
  ptx::cp_async<4>(words() + me(), m.in + me());
  ptx::cp_async_commit();
  if (!sin) ptx::cp_async_wait<0>();
  m.out[me()] = m.in[me()];
}

// No sin that is reported: the copy takes what its source holds when it lands.
void copy_of_what_changes(Memory m, bool sin) {
  m.scratch[me()] = m.in[me()];
  ptx::cp_async<4>(words() + me(), m.scratch + me());
  ptx::cp_async_commit();
  if (sin) m.scratch[me()] = 0;
  ptx::cp_async_wait<0>();
  m.out[me()] = words()[me()];
}

void unaligned_copy(Memory m, bool sin) {
  if (me() < 8) ptx::cp_async<16>(words() + 4 * me(), m.in + 4 * me() + (sin ? 1 : 0));
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  m.out[me()] = m.in[me()];
}

void copy_to_unaligned(Memory m, bool sin) {
  if (me() < 8) ptx::cp_async<16>(words() + 4 * me() + (sin ? 2 : 0), m.in + 4 * me());
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  m.out[me()] = m.in[me()];
}

void copy_past_the_end(Memory m, bool sin) {
  ptx::cp_async<16>(words() + 4 * me(), m.in + me() / 4 * 4 + (sin ? 4 : 0));
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  m.out[me()] = words()[4 * me() + me() % 4];
}

void unaligned_rows(Memory m, bool sin) {
  words()[me()] = words()[64 + me()] = m.in[me()];
  __syncthreads();
  uint32_t d[2];
  ptx::ldmatrix_x2(d, words() + me() % 16 * 4 + (sin ? 1 : 0));
  m.out[me()] = m.in[me()];
}

void rows_outside(Memory m, bool sin) {
  words()[me()] = m.in[me()];
  __syncthreads();
  uint32_t d[2];
  ptx::ldmatrix_x2(d, sin ? m.in + me() % 16 * 4 : words() + me() % 16 * 4);
  m.out[me()] = m.in[me()];
}

void rows_without_barrier(Memory m, bool sin) {
  words()[me()] = m.in[me()];
  if (!sin) __syncthreads();
  uint32_t d[2];
  ptx::ldmatrix_x2(d, words() + me() / 32 * 32 + (7 - me() % 8) * 4);
  m.out[me() / 32 * 32 + (7 - me() % 32 / 4) * 4 + me() % 4] = static_cast<int>(d[0]);
}

// 8 rows of 128 bytes: the first chunks of all lie in the same banks, unless the chunks of each row are permuted.
void bank_conflicts(Memory m, bool sin) {
  const int row = me() % 32 / 4, chunk = sin ? 0 : row;
  int* const shared = words() + me() / 32 * 256;
  shared[row * 32 + chunk * 4 + me() % 4] = m.in[me()];
  __syncthreads();
  uint32_t d[2];
  ptx::ldmatrix_x2(d, shared + me() % 8 * 32 + (sin ? 0 : me() % 8 * 4));
  m.out[me()] = static_cast<int>(d[0]);
}

constexpr Sin kSins[] = {
    {"read_without_barrier", read_without_barrier},
    {"read_within_warp", read_within_warp},
    {"warp_barrier_for_a_block", warp_barrier_for_a_block},
    {"write_after_read", write_after_read},
    {"write_after_read_of_another_warp", write_after_read_of_another_warp},
    {"write_after_read_of_another_lane", write_after_read_of_another_lane},
    {"warp_barrier_for_another_warp", warp_barrier_for_another_warp},
    {"barrier_before_wait", barrier_before_wait},
    {"two_writers", two_writers},
    {"uninitialized", uninitialized},
    {"left_by_another_block", left_by_another_block, 2},
    {"past_shared", past_shared},
    {"read_before_wait", read_before_wait},
    {"wait_for_one_group_of_two", wait_for_one_group_of_two},
    {"wait_before_commit", wait_before_commit},
    {"wait_without_barrier", wait_without_barrier},
    {"copy_over_what_others_read", copy_over_what_others_read},
    {"write_over_a_copy", write_over_a_copy},
    {"copy_not_waited_for", copy_not_waited_for},
    {"copy_of_what_changes", copy_of_what_changes},
    {"unaligned_copy", unaligned_copy},
    {"copy_to_unaligned", copy_to_unaligned},
    {"copy_past_the_end", copy_past_the_end},
    {"unaligned_rows", unaligned_rows},
    {"rows_outside", rows_outside},
    {"rows_without_barrier", rows_without_barrier},
    {"bank_conflicts", bank_conflicts},
};

}  // namespace torchaccel::cuda

extern "C" bool run(const char* name, int64_t sin, const int* in, const int* zero, int* out, int* scratch) {
  using namespace torchaccel::cuda;
  return commit(kSins, name, sin != 0, {in, zero, out, scratch});
}
