// One warp, or warpgroup, for each function of ptx.cuh: words in, the instruction, words out. Compiled by nvcc for a
// GPU and by g++ for the emulator; ptx_vectors.py makes the inputs and says what must come out. Free of torch headers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>

#include "launch.cuh"
#include "ptx.cuh"

namespace torchaccel::cuda::vectors {

constexpr int kLanes = kWarp;

// Words in the order of the instruction's operands, last the one that it adds to. Sums are words of bits here.
template <typename X>
struct Mma {
  static constexpr int kThreads = kLanes, kIn = 10, kOut = 4, kShared = 0;
  __device__ static void run(const uint32_t (&in)[kIn], uint32_t (&out)[kOut]) {
    const uint32_t a[4] = {in[0], in[1], in[2], in[3]}, b[2] = {in[4], in[5]};
    typename ptx::Sum<X>::type d[4];
    memcpy(d, in + 6, sizeof(d));
    ptx::mma<X>(d, a, b);
    memcpy(out, d, sizeof(d));
  }
};

template <typename X, int kSelector>
struct MmaSp {
  static constexpr int kThreads = kLanes, kIn = 13, kOut = 4, kShared = 0;
  __device__ static void run(const uint32_t (&in)[kIn], uint32_t (&out)[kOut]) {
    const uint32_t a[4] = {in[0], in[1], in[2], in[3]}, b[4] = {in[4], in[5], in[6], in[7]};
    typename ptx::Sum<X>::type d[4];
    memcpy(d, in + 9, sizeof(d));
    ptx::mma_sp<X, kSelector>(d, a, b, in[8]);
    memcpy(out, d, sizeof(d));
  }
};

// Lane i writes 16 bytes to row i of shared memory, and gives the address of row in[4].
template <int kMatrices>
struct Ldmatrix {
  static constexpr int kThreads = kLanes, kIn = 5, kOut = kMatrices, kShared = kLanes * 16;
  __device__ static void run(const uint32_t (&in)[kIn], uint32_t (&out)[kOut]) {
    uint32_t* shared = reinterpret_cast<uint32_t*>(ptx::shared_memory());
    for (int i = 0; i < 4; ++i) shared[threadIdx.x * 4 + i] = in[i];
    __syncthreads();
    if constexpr (kMatrices == 4) {
      ptx::ldmatrix_x4(out, shared + in[4] * 4);
    } else {
      ptx::ldmatrix_x2(out, shared + in[4] * 4);
    }
  }
};

// Copies two groups of kBytes a lane, and reads what the neighbour copied: the first after a wait that leaves one group
// under way, the second after the last wait. It takes the words from global memory itself.
template <int kBytes>
struct CpAsync {
  static constexpr int kThreads = kLanes, kWords = kBytes / 4, kIn = 2 * kWords, kOut = 2 * kWords,
                       kShared = kLanes * 2 * kBytes;
  __device__ static void run(const uint32_t* in, uint32_t (&out)[kOut]) {
    uint32_t* shared = reinterpret_cast<uint32_t*>(ptx::shared_memory());
    const int lane = static_cast<int>(threadIdx.x);
    for (int group = 0; group < 2; ++group) {
      ptx::cp_async<kBytes>(shared + (group * kLanes + lane) * kWords, in + (lane * 2 + group) * kWords);
      ptx::cp_async_commit();
    }
    ptx::cp_async_wait<1>();
    __syncthreads();
    read(shared, lane ^ 1, out);
    ptx::cp_async_wait<0>();
    __syncthreads();
    read(shared + kLanes * kWords, lane ^ 1, out + kWords);
  }

  __device__ static void read(const uint32_t* shared, int lane, uint32_t* out) {
    for (int i = 0; i < kWords; ++i) out[i] = shared[lane * kWords + i];
  }
};

// A product of 64 rows of weights by 64 of activations, whose tiles of 64 bytes a row (of 128, for 2:4 weights) the
// threads write to shared memory word by word: of their second steps along K.
template <typename X, int kSelector = -1>
struct Wgmma {
  static constexpr bool kSparse = kSelector >= 0;
  static constexpr int kBytesX = kSparse ? 128 : 64, kRows = 64, kWordsX = kBytesX / 8, kMetadata = kSparse ? 1 : 0;
  static constexpr int kThreads = kWarpgroup, kIn = 8 + kWordsX + kMetadata + 32, kOut = 32;
  static constexpr int kShared = kRows * (64 + kBytesX);
  __device__ static void run(const uint32_t (&in)[kIn], uint32_t (&out)[kOut]) {
    uint8_t *weights = ptx::shared_memory(), *x = weights + kRows * 64;
    const int thread = static_cast<int>(threadIdx.x);
    for (int i = 0; i < 8; ++i) reinterpret_cast<uint32_t*>(weights)[thread * 8 + i] = in[i];
    for (int i = 0; i < kWordsX; ++i) reinterpret_cast<uint32_t*>(x)[thread * kWordsX + i] = in[8 + i];
    ptx::fence_proxy_async();
    __syncthreads();
    typename ptx::Sum<X>::type d[8][4];
    memcpy(d, in + kIn - 32, sizeof(d));
    ptx::wgmma_fence(d);
    const uint64_t a = ptx::descriptor<64>(weights + 32), b = ptx::descriptor<kBytesX>(x + kBytesX / 2);
    if constexpr (kSparse) {
      ptx::wgmma_sp<X, 64, kSelector>(d, a, b, in[8 + kWordsX]);
    } else {
      ptx::wgmma<X, 64>(d, a, b);
    }
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>(d);
    memcpy(out, d, sizeof(d));
  }
};

template <typename Instruction>
constexpr bool kFromGlobal = false;
template <int kBytes>
constexpr bool kFromGlobal<CpAsync<kBytes>> = true;

template <typename Instruction>
constexpr bool kHere = Instruction::kThreads == kLanes || ptx::kWarpgroups;

// in: [kThreads, kIn] words, out: [kThreads, kOut] words.
template <typename Instruction>
__device__ inline void run_vector(const uint32_t* in, uint32_t* out) {
  uint32_t given[Instruction::kOut];
  if constexpr (kFromGlobal<Instruction>) {
    Instruction::run(in, given);
  } else {
    uint32_t words[Instruction::kIn];
    for (int i = 0; i < Instruction::kIn; ++i) words[i] = in[threadIdx.x * Instruction::kIn + i];
    Instruction::run(words, given);
  }
  for (int i = 0; i < Instruction::kOut; ++i) out[threadIdx.x * Instruction::kOut + i] = given[i];
}

template <typename Instruction>
__global__ void vector_kernel(const uint32_t* in, uint32_t* out) {
  if constexpr (kHere<Instruction>) run_vector<Instruction>(in, out);
}

struct Vector {
  const char* name;
  int in_words, out_words;  // of one thread
  void (*run)(const uint32_t* in, uint32_t* out);
};

template <typename Instruction>
constexpr Vector vector(const char* name) {
  return {name, Instruction::kIn, Instruction::kOut, [](const uint32_t* in, uint32_t* out) {
            launch(vector_kernel<Instruction>, 1, Instruction::kThreads, Instruction::kShared, nullptr, in, out);
          }};
}

inline constexpr Vector kVectors[] = {
    vector<Mma<int8_t>>("mma int8"),
    vector<Mma<uint8_t>>("mma uint8"),
    vector<Mma<__half>>("mma float16"),
    vector<Mma<__nv_bfloat16>>("mma bfloat16"),
    vector<MmaSp<int8_t, 0>>("mma_sp int8"),
    vector<MmaSp<uint8_t, 0>>("mma_sp uint8"),
    vector<MmaSp<__half, 0>>("mma_sp float16, selector 0"),
    vector<MmaSp<__half, 1>>("mma_sp float16, selector 1"),
    vector<MmaSp<__nv_bfloat16, 0>>("mma_sp bfloat16, selector 0"),
    vector<MmaSp<__nv_bfloat16, 1>>("mma_sp bfloat16, selector 1"),
    vector<Wgmma<int8_t>>("wgmma int8"),
    vector<Wgmma<uint8_t>>("wgmma uint8"),
    vector<Wgmma<__half>>("wgmma float16"),
    vector<Wgmma<__nv_bfloat16>>("wgmma bfloat16"),
    vector<Wgmma<int8_t, 0>>("wgmma_sp int8"),
    vector<Wgmma<uint8_t, 0>>("wgmma_sp uint8"),
    vector<Wgmma<__half, 0>>("wgmma_sp float16, selector 0"),
    vector<Wgmma<__half, 1>>("wgmma_sp float16, selector 1"),
    vector<Wgmma<__nv_bfloat16, 0>>("wgmma_sp bfloat16, selector 0"),
    vector<Wgmma<__nv_bfloat16, 1>>("wgmma_sp bfloat16, selector 1"),
    vector<Ldmatrix<4>>("ldmatrix_x4"),
    vector<Ldmatrix<2>>("ldmatrix_x2"),
    vector<CpAsync<4>>("cp_async 4"),
    vector<CpAsync<8>>("cp_async 8"),
    vector<CpAsync<16>>("cp_async 16"),
};

inline const Vector* find(const char* name) {
  for (const Vector& each : kVectors) {
    if (std::strcmp(each.name, name) == 0) return &each;
  }
  return nullptr;
}

}  // namespace torchaccel::cuda::vectors
