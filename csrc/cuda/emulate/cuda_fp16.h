// Stands in for CUDA's header of the same name when g++ compiles kernels for emulate.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

struct __half {
  uint16_t bits;
};
struct alignas(4) __half2 {
  __half x, y;
};

inline float __half2float(__half h) {
  const uint32_t sign = static_cast<uint32_t>(h.bits & 0x8000) << 16, rest = h.bits & 0x7fff;
  uint32_t wide = rest << 13;
  float value;
  if (rest >= 0x7c00) {
    wide |= 0x7f800000;
  } else {  // moves the exponent's bias from 15 to 127, exactly, subnormals too
    std::memcpy(&value, &wide, sizeof(value));
    value *= 0x1p112f;
    std::memcpy(&wide, &value, sizeof(wide));
  }
  wide |= sign;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

inline __half __float2half_rn(float value) {
  uint32_t wide;
  std::memcpy(&wide, &value, sizeof(wide));
  const auto sign = static_cast<uint16_t>(wide >> 16 & 0x8000);
  wide &= 0x7fffffff;
  if (wide > 0x7f800000) return {0x7fff};                                 // NaN
  if (wide >= 0x477ff000) return {static_cast<uint16_t>(sign | 0x7c00)};  // 65520 and above
  if (wide < 0x38800000) {                                                // subnormal: steps of 2^-24
    return {static_cast<uint16_t>(sign | static_cast<uint16_t>(std::nearbyint(std::fabs(value) * 0x1p24f)))};
  }
  wide += 0xfff + (wide >> 13 & 1);  // half to even
  return {static_cast<uint16_t>(sign | static_cast<uint16_t>((wide >> 13) - (112 << 10)))};
}

inline __half __float2half(float value) { return __float2half_rn(value); }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline float __low2float(__half2 h) { return __half2float(h.x); }
inline float __high2float(__half2 h) { return __half2float(h.y); }
inline uint16_t __half_as_ushort(__half h) { return h.bits; }
inline __half __ushort_as_half(uint16_t bits) { return {bits}; }
