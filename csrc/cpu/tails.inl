// Loads and stores of fewer than 16 integers, through a buffer; missing elements are zero.
#pragma once

template <typename T>
struct Tail {
  alignas(64) T v[16];
  Tail() { memset(v, 0, sizeof(v)); }
  Tail(const T* p, int64_t n) : Tail() { memcpy(v, p, static_cast<size_t>(n) * sizeof(T)); }
};

TORCHACCEL_INLINE I32 i32_load_n(const int32_t* p, int64_t n) {
  return n == 16 ? i32_load(p) : i32_load(Tail<int32_t>(p, n).v);
}
TORCHACCEL_INLINE I32 i32_load_s8_n(const int8_t* p, int64_t n) {
  return n == 16 ? i32_load_s8(p) : i32_load_s8(Tail<int8_t>(p, n).v);
}
TORCHACCEL_INLINE I32 i32_load_u8_n(const uint8_t* p, int64_t n) {
  return n == 16 ? i32_load_u8(p) : i32_load_u8(Tail<uint8_t>(p, n).v);
}

TORCHACCEL_INLINE void i32_store_s8_n(int8_t* p, I32 a, int64_t n) {
  if (n == 16) return i32_store_s8(p, a);
  Tail<int8_t> tail;
  i32_store_s8(tail.v, a);
  memcpy(p, tail.v, static_cast<size_t>(n));
}
TORCHACCEL_INLINE void i32_store_u8_n(uint8_t* p, I32 a, int64_t n) {
  if (n == 16) return i32_store_u8(p, a);
  Tail<uint8_t> tail;
  i32_store_u8(tail.v, a);
  memcpy(p, tail.v, static_cast<size_t>(n));
}

// Four bytes as they lie in memory.
TORCHACCEL_INLINE int32_t load_word(const int8_t* p) {
  int32_t word;
  memcpy(&word, p, 4);
  return word;
}
