#include "isa.h"

#include <torch/headeronly/util/Exception.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>

namespace torchaccel {
namespace {

struct Candidate {
  const Kernels* kernels;
  bool available;
};

// From the least to the most capable; __builtin_cpu_supports also asks the system whether it saves the registers.
const Candidate* candidates(int* count) {
  __builtin_cpu_init();
  static const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  static const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  static const Candidate all[] = {
      {&kScalarKernels, true},
      {&kAvx2Kernels, avx2},
      {&kAvxVnniKernels, avx2 && __builtin_cpu_supports("avxvnni")},
      {&kAvx512Kernels, avx512},
      {&kAvx512VnniKernels, avx512 && __builtin_cpu_supports("avx512vnni")},
  };
  *count = sizeof(all) / sizeof(all[0]);
  return all;
}

const Kernels* find(const char* name) {
  int count;
  const Candidate* all = candidates(&count);
  for (int i = 0; i < count; ++i) {
    if (all[i].available && std::strcmp(all[i].kernels->name, name) == 0) return all[i].kernels;
  }
  return nullptr;
}

const Kernels* best() {
  int count;
  const Candidate* all = candidates(&count);
  while (!all[count - 1].available) --count;
  return all[count - 1].kernels;
}

const std::string& available() {
  static const std::string names = [] {
    int count;
    const Candidate* all = candidates(&count);
    std::string joined;
    for (int i = 0; i < count; ++i) {
      if (all[i].available) joined += (i ? "," : "") + std::string(all[i].kernels->name);
    }
    return joined;
  }();
  return names;
}

// nullptr: TORCHACCEL_ISA cannot be met, which the first op reports.
std::atomic<const Kernels*>& current() {
  static std::atomic<const Kernels*> kernels = [] {
    const char* forced = std::getenv("TORCHACCEL_ISA");
    return forced == nullptr || *forced == 0 ? best() : find(forced);
  }();
  return kernels;
}

}  // namespace

const Kernels& kernels() {
  const Kernels* found = current().load(std::memory_order_relaxed);
  STD_TORCH_CHECK(found != nullptr, "TORCHACCEL_ISA is '", std::getenv("TORCHACCEL_ISA"), "', available here are ",
                  available());
  return *found;
}

}  // namespace torchaccel

// For torchaccel/_native.py, through ctypes: the set in use ("" where TORCHACCEL_ISA cannot be met), the available
// ones separated by commas, and a switch for tests (0: done, 1: unknown or not available).
extern "C" __attribute__((visibility("default"))) const char* torchaccel_isa() {
  const torchaccel::Kernels* found = torchaccel::current().load();
  return found == nullptr ? "" : found->name;
}

extern "C" __attribute__((visibility("default"))) const char* torchaccel_isas_available() {
  return torchaccel::available().c_str();
}

extern "C" __attribute__((visibility("default"))) int torchaccel_force_isa(const char* name) {
  const torchaccel::Kernels* found = torchaccel::find(name);
  if (found == nullptr) return 1;
  torchaccel::current().store(found);
  return 0;
}
