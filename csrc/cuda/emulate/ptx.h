// The functions of ptx.cuh for the emulated machine.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace torchaccel::cuda::ptx {

template <typename X>
struct Sum {
  using type = std::conditional_t<sizeof(X) == 1, int32_t, float>;
};

inline uint8_t* shared_memory() { return emulate_shared_memory; }

template <int kBytes>
inline void cp_async(void* shared, const void* global) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  emulate::copy_async(shared, global, kBytes);
}

inline void cp_async_commit() { emulate::commit_copies(); }

template <int kPending>
inline void cp_async_wait() {
  emulate::wait_copies(kPending);
}

inline void ldmatrix_x4(uint32_t (&d)[4], const void* row) {
  emulate::Rows rows{{}, row};
  emulate::collective(emulate::load_matrices(4), &rows);
  std::memcpy(d, rows.d, sizeof(d));
}

inline void ldmatrix_x2(uint32_t (&d)[2], const void* row) {
  emulate::Rows rows{{}, row};
  emulate::collective(emulate::load_matrices(2), &rows);
  std::memcpy(d, rows.d, sizeof(d));
}

template <typename X>
constexpr emulate::Type type_of() {
  if (std::is_same_v<X, int8_t>) return emulate::Type::kInt8;
  if (std::is_same_v<X, uint8_t>) return emulate::Type::kUint8;
  static_assert(sizeof(X) == 1 || std::is_same_v<X, __half> || std::is_same_v<X, __nv_bfloat16>);
  return std::is_same_v<X, __half> ? emulate::Type::kHalf : emulate::Type::kBfloat16;
}

template <typename X>
inline void mma(typename Sum<X>::type (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulate::Fragments given{{}, {a[0], a[1], a[2], a[3]}, {b[0], b[1], 0, 0}, 0};
  std::memcpy(given.d, d, sizeof(d));
  emulate::collective(emulate::mma(type_of<X>()), &given);
  std::memcpy(d, given.d, sizeof(d));
}

template <typename X, int kSelector>
inline void mma_sp(typename Sum<X>::type (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], uint32_t metadata) {
  static_assert(kSelector == 0 || (kSelector == 1 && sizeof(X) == 2));
  emulate::Fragments given{{}, {a[0], a[1], a[2], a[3]}, {b[0], b[1], b[2], b[3]}, metadata};
  std::memcpy(given.d, d, sizeof(d));
  emulate::collective(emulate::mma_sparse(type_of<X>(), kSelector), &given);
  std::memcpy(d, given.d, sizeof(d));
}

constexpr bool kWarpgroups = true;

template <int kBytes>
inline uint64_t descriptor(const void* rows) {
  static_assert(kBytes == 64 || kBytes == 128);
  return emulate::describe(rows, kBytes);
}

inline void fence_proxy_async() { emulate::fence_proxy(); }

template <typename S, int kFragments>
inline void wgmma_fence(S (&)[kFragments][4]) {
  emulate::fence_products();
}

inline void wgmma_commit() { emulate::commit_products(); }

template <int kPending, typename S, int kFragments>
inline void wgmma_wait(S (&)[kFragments][4]) {
  emulate::wait_products(kPending);
}

template <typename X, int kColumns>
inline void wgmma(typename Sum<X>::type (&d)[kColumns / 8][4], uint64_t a, uint64_t b) {
  static_assert(kColumns == 64 || kColumns == 128 || kColumns == 256);
  emulate::start_product({type_of<X>(), kColumns, a, b, &d[0][0], -1, 0});
}

template <typename X, int kColumns, int kSelector>
inline void wgmma_sp(typename Sum<X>::type (&d)[kColumns / 8][4], uint64_t a, uint64_t b, uint32_t metadata) {
  static_assert(kColumns == 64 || kColumns == 128 || kColumns == 256);
  static_assert(kSelector == 0 || (kSelector == 1 && sizeof(X) == 2));
  emulate::start_product({type_of<X>(), kColumns, a, b, &d[0][0], kSelector, metadata});
}

}  // namespace torchaccel::cuda::ptx
