// Sins against global memory, among the threads of a warp or block, and of arithmetic.
#include "sins.h"

namespace torchaccel::cuda {

void read_past_the_end(Memory m, bool sin) {
  m.out[me()] = m.in[me()];
  words()[me()] = m.in[me() + (sin ? 1 : 0)];
}

void write_past_the_end(Memory m, bool sin) {
  m.out[me()] = m.in[me()];
  if (sin) m.out[me() + 1] = 1;
}

void unaligned_load(Memory m, bool sin) {
  const int at = me() / 4 * 4;
  const int4 v = *reinterpret_cast<const int4*>(m.in + (sin && at < 60 ? at + 1 : at));
  const int given[4] = {v.x, v.y, v.z, v.w};
  m.out[me()] = given[me() % 4];
}

void input_written(Memory m, bool sin) {
  m.out[me()] = m.in[me()];
  if (sin) const_cast<int*>(m.in)[me()] = 0;
}

void written_twice(Memory m, bool sin) {
  m.out[me()] = m.in[me()];
  if (sin) m.out[63 - me()] = m.in[63 - me()];
}

void not_written(Memory m, bool sin) {
  if (!sin || me() != 17) m.out[me()] = m.in[me()];
}

void output_read(Memory m, bool sin) {
  m.out[me()] = m.in[me()];
  __syncthreads();
  words()[me()] = sin ? m.out[me()] : 0;
}

void workspace_unwritten(Memory m, bool sin) {
  if (!sin || me() > 0) m.scratch[64 + me()] = m.in[me()];
  m.out[me()] = m.scratch[64 + me()];
}

void workspace_race(Memory m, bool sin) {
  m.scratch[me()] = m.in[me()];
  if (!sin) __syncthreads();
  m.out[63 - me()] = m.scratch[63 - me()];
}

void workspace_of_another_block(Memory m, bool sin) {
  m.scratch[64 * blockIdx.x + me()] = m.in[me()];
  if (blockIdx.x == 0) m.out[me()] = m.scratch[(sin ? 64 : 0) + me()];
}

void workspace_read_by_another_block(Memory m, bool sin) {
  if (blockIdx.x == 0) m.out[me()] = m.in[me()] + m.scratch[me()];
  if (blockIdx.x == 1) m.scratch[(sin ? 0 : 64) + me()] = 1;
}

void all_sin(Memory m, bool sin) {
  if (sin) m.out[64 + me()] = 0;
  if (blockIdx.x == 0) m.out[me()] = m.in[me()];
}

void divergent_collectives(Memory m, bool sin) {
  int given = m.in[me()];
  if (sin && me() % 2 == 0) {
    __syncwarp();
  } else {
    given = __shfl_sync(0xffffffffu, given, me() % 32);
  }
  m.out[me()] = given;
}

void lanes_missing(Memory m, bool sin) {
  int given = m.in[me()];
  if (!sin || me() != 5) given = __shfl_sync(0xffffffffu, given, me() % 32);
  m.out[me()] = given;
}

void partial_mask(Memory m, bool sin) { m.out[me()] = __shfl_sync(sin ? 0xffffu : 0xffffffffu, m.in[me()], me() % 32); }

void barrier_in_a_branch(Memory m, bool sin) {
  if (!sin || me() < 32) __syncthreads();
  if (sin && me() >= 32) m.out[me()] = __shfl_sync(0xffffffffu, m.in[me()], me() % 32);
  if (!sin || me() < 32) m.out[me()] = m.in[me()];
}

void barrier_and_collective(Memory m, bool sin) {
  if (sin && me() % 32 == 3) {
    __syncthreads();
  } else {
    __syncwarp();
  }
  m.out[me()] = m.in[me()];
}

void metadata_falls(Memory m, bool sin) {
  int32_t d[4] = {};
  const uint32_t a[4] = {}, b[4] = {};
  ptx::mma_sp<int8_t, 0>(d, a, b, sin && me() == 37 ? 0x44444441 : 0x44444444);
  m.out[me()] = m.in[me()] + d[0];
}

void metadata_repeats(Memory m, bool sin) {
  int32_t d[4] = {};
  const uint32_t a[4] = {}, b[4] = {};
  ptx::mma_sp<int8_t, 0>(d, a, b, sin && me() == 37 ? 0x44444445 : 0x44444444);
  m.out[me()] = m.in[me()] + d[0];
}

void shift_too_far(Memory m, bool sin) { m.out[me()] = m.in[me()] >> (m.zero[0] + (sin ? 32 : 0)); }

void index_out_of_bounds(Memory m, bool sin) {
  int held[4] = {m.in[me()], m.in[me()], m.in[me()], m.in[me()]};
  m.out[me()] = held[m.zero[0] + me() % 4 + (sin ? 1 : 0)];
}

void memcpy_past_the_end(Memory m, bool sin) {
  int held[65];
  std::memcpy(held, m.in, (64 + static_cast<size_t>(m.zero[0])) * 4 + (sin ? 1 : 0));
  m.out[me()] = held[me()];
}

void endless(Memory m, bool sin) {
  while (sin && *static_cast<const volatile int*>(m.zero) == 0) {
  }
  m.out[me()] = m.in[me()];
}

constexpr Sin kSins[] = {
    {"read_past_the_end", read_past_the_end},
    {"write_past_the_end", write_past_the_end},
    {"unaligned_load", unaligned_load},
    {"input_written", input_written},
    {"written_twice", written_twice},
    {"not_written", not_written},
    {"output_read", output_read},
    {"workspace_unwritten", workspace_unwritten},
    {"workspace_race", workspace_race},
    {"workspace_of_another_block", workspace_of_another_block, 2},
    {"workspace_read_by_another_block", workspace_read_by_another_block, 2},
    {"all_sin", all_sin, 2},
    {"divergent_collectives", divergent_collectives},
    {"lanes_missing", lanes_missing},
    {"partial_mask", partial_mask},
    {"barrier_in_a_branch", barrier_in_a_branch},
    {"barrier_and_collective", barrier_and_collective},
    {"metadata_falls", metadata_falls},
    {"metadata_repeats", metadata_repeats},
    {"shift_too_far", shift_too_far},
    {"index_out_of_bounds", index_out_of_bounds},
    {"memcpy_past_the_end", memcpy_past_the_end},
    {"endless", endless},
};

}  // namespace torchaccel::cuda

extern "C" bool run(const char* name, int64_t sin, const int* in, const int* zero, int* out, int* scratch) {
  using namespace torchaccel::cuda;
  return commit(kSins, name, sin != 0, {in, zero, out, scratch});
}

extern "C" void launch_nothing(int64_t blocks, int64_t threads, int64_t shared) {
  torchaccel::cuda::launch(+[](int) {}, blocks, static_cast<int>(threads), shared, nullptr, 0);
}

// Halves from all their bits, and to halves from `count` floats; type: h or b.
extern "C" void convert(char type, const uint16_t* bits, float* wide, const float* floats, uint16_t* narrow,
                        int64_t count) {
  for (int i = 0; i < 1 << 16; ++i) {
    wide[i] = type == 'h' ? __half2float(__ushort_as_half(bits[i])) : __bfloat162float(__ushort_as_bfloat16(bits[i]));
  }
  for (int64_t i = 0; i < count; ++i) {
    narrow[i] = type == 'h' ? __half_as_ushort(__float2half_rn(floats[i]))
                            : __bfloat16_as_ushort(__float2bfloat16_rn(floats[i]));
  }
}
