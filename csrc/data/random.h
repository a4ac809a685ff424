// Counter-based random numbers: what a sample draws depends on (seed, epoch, index) alone, not on the thread, the rank
// or what was drawn before.
//
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011: Philox4x32 with 10
// rounds. torchaccel/data/_random.py says the same in Python.
#pragma once

#include <array>
#include <cstdint>

namespace torchaccel::data {

class Random {
 public:
  Random(uint64_t seed, uint32_t epoch, uint64_t index) : seed_(seed), epoch_(epoch), index_(index) {}

  // Four independent numbers; `number` says which four.
  std::array<uint32_t, 4> block(uint32_t number) const {
    std::array<uint32_t, 4> c = {static_cast<uint32_t>(index_), static_cast<uint32_t>(index_ >> 32), epoch_, number};
    uint32_t k0 = static_cast<uint32_t>(seed_), k1 = static_cast<uint32_t>(seed_ >> 32);
    for (int round = 0; round < 10; ++round) {
      const uint64_t a = uint64_t{0xD2511F53} * c[0], b = uint64_t{0xCD9E8D57} * c[2];
      c = {static_cast<uint32_t>(b >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(b),
           static_cast<uint32_t>(a >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(a)};
      k0 += 0x9E3779B9;
      k1 += 0xBB67AE85;
    }
    return c;
  }

 private:
  uint64_t seed_;
  uint32_t epoch_;
  uint64_t index_;
};

// In [0, 1).
inline double uniform(uint32_t bits) { return bits * 0x1p-32; }

// In [0, count).
inline int below(uint32_t bits, int count) {
  return static_cast<int>((uint64_t{bits} * static_cast<uint64_t>(count)) >> 32);
}

}  // namespace torchaccel::data
