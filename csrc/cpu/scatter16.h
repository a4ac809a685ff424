// Where stores have no masks.

// `count` floats, up to 16, from a row of 16.
TORCHACCEL_INLINE void copy_floats(float* to, const float* from, int64_t count) {
  if (count == 16) {
    memcpy(to, from, 64);
  } else if (count >= 8) {  // two parts that overlap
    memcpy(to, from, 32);
    memcpy(to + count - 8, from + count - 8, 32);
  } else if (count >= 4) {
    memcpy(to, from, 16);
    memcpy(to + count - 4, from + count - 4, 16);
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = from[i];
  }
}

// to[at[i] + k] = float i of vectors[k], k < counts[i]; counts of up to `wide`, 1 to 16.
TORCHACCEL_INLINE void scatter16(const uint8_t* const* vectors, int64_t, float* to, const int64_t* at,
                                 const int64_t* counts) {
  alignas(64) float rows[16][16];
  transpose16(vectors, 16, 0, reinterpret_cast<uint8_t*>(rows), 64);
  for (int i = 0; i < 16; ++i) copy_floats(to + at[i], rows[i], counts[i]);
}
