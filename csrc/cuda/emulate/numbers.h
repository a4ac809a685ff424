// What the products of a warp and of a warpgroup share.
#pragma once

#include <cstring>
#include <type_traits>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "memory.h"

namespace emulate {

template <typename X>
using Total = std::conditional_t<sizeof(X) == 1, uint32_t, double>;  // integers wrap

inline int to_number(int8_t x) { return x; }
inline int to_number(uint8_t x) { return x; }
inline double to_number(__half x) { return __half2float(x); }
inline double to_number(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename W, typename X>
Total<X> dot(const W* w, const X* x, int depth) {
  Total<X> sum = 0;
  for (int k = 0; k < depth; ++k) sum += static_cast<Total<X>>(to_number(w[k]) * to_number(x[k]));
  return sum;
}

// To the four bytes of a sum.
template <typename X>
void add_to(void* word, Total<X> sum) {
  std::conditional_t<sizeof(X) == 1, uint32_t, float> total;
  std::memcpy(&total, word, sizeof(total));
  total = static_cast<decltype(total)>(total + sum);
  std::memcpy(word, &total, sizeof(total));
}

// A row of 2:4 weights, of 16 of a warp: `kept` to its places among `depth`. metadata(lane): the word that a lane gave.
template <typename X, typename W, typename Metadata>
void spread(const W* kept, W* whole, int depth, int row, int selector, const Metadata& metadata) {
  const int g = row % 8, high = row / 8;
  for (int group = 0; group < depth / 4; ++group) {
    const uint32_t places = sizeof(X) == 1 ? metadata(4 * g + group / 8 * 2 + high) >> group % 8 * 4  // 8 groups a lane
                                           : metadata(4 * g + selector * 2 + group / 4) >> (high * 16 + group % 4 * 4);
    const uint32_t first = places & 3, second = places >> 2 & 3;
    if (first >= second) {
      fail(waiting_at(), "places %u and %u of row %d, group %d do not rise", first, second, row, group);
    }
    whole[group * 4 + first] = kept[group * 2];
    whole[group * 4 + second] = kept[group * 2 + 1];
  }
}

}  // namespace emulate
