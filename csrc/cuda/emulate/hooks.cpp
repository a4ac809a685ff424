// What g++ calls before each access to memory (-fsanitize=thread) and where it finds what C++ leaves undefined
// (-fsanitize=alignment and others). Not linked with the sanitizers' own libraries.
#include <cstring>

#include "memory.h"

using emulate::fail;
using emulate::hook;

#define CALLER __builtin_return_address(0)

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

void __tsan_read1(void* p) { hook(p, 1, false, CALLER); }
void __tsan_read2(void* p) { hook(p, 2, false, CALLER); }
void __tsan_read4(void* p) { hook(p, 4, false, CALLER); }
void __tsan_read8(void* p) { hook(p, 8, false, CALLER); }
void __tsan_read16(void* p) { hook(p, 16, false, CALLER); }
void __tsan_write1(void* p) { hook(p, 1, true, CALLER); }
void __tsan_write2(void* p) { hook(p, 2, true, CALLER); }
void __tsan_write4(void* p) { hook(p, 4, true, CALLER); }
void __tsan_write8(void* p) { hook(p, 8, true, CALLER); }
void __tsan_write16(void* p) { hook(p, 16, true, CALLER); }
void __tsan_unaligned_read2(void* p) { hook(p, 2, false, CALLER); }
void __tsan_unaligned_read4(void* p) { hook(p, 4, false, CALLER); }
void __tsan_unaligned_read8(void* p) { hook(p, 8, false, CALLER); }
void __tsan_unaligned_read16(void* p) { hook(p, 16, false, CALLER); }
void __tsan_unaligned_write2(void* p) { hook(p, 2, true, CALLER); }
void __tsan_unaligned_write4(void* p) { hook(p, 4, true, CALLER); }
void __tsan_unaligned_write8(void* p) { hook(p, 8, true, CALLER); }
void __tsan_unaligned_write16(void* p) { hook(p, 16, true, CALLER); }
void __tsan_read_range(void* p, size_t bytes) { hook(p, bytes, false, CALLER); }
void __tsan_write_range(void* p, size_t bytes) { hook(p, bytes, true, CALLER); }

// The kernels' own calls, those that g++ did not inline, come here: they are linked with --wrap.
void* __wrap_memcpy(void* to, const void* from, size_t bytes) {
  hook(from, bytes, false, CALLER);
  hook(to, bytes, true, CALLER);
  return std::memmove(to, from, bytes);
}
void* __wrap_memmove(void* to, const void* from, size_t bytes) { return __wrap_memcpy(to, from, bytes); }
void* __wrap_memset(void* to, int value, size_t bytes) {
  hook(to, bytes, true, CALLER);
  return std::memset(to, value, bytes);
}

struct Source {
  const char* file;
  unsigned line, column;
};
void __ubsan_handle_type_mismatch_v1(Source*, const void* address) {
  fail(CALLER, "accesses %p, which is not aligned to its type", address);
}
void __ubsan_handle_out_of_bounds(Source*, long index) {
  fail(CALLER, "reads an array at %ld, out of its bounds", index);
}
void __ubsan_handle_shift_out_of_bounds(Source*, long, long by) { fail(CALLER, "shifts by %ld", by); }
void __ubsan_handle_add_overflow(Source*, long a, long b) { fail(CALLER, "overflows in %ld + %ld", a, b); }
void __ubsan_handle_sub_overflow(Source*, long a, long b) { fail(CALLER, "overflows in %ld - %ld", a, b); }
void __ubsan_handle_mul_overflow(Source*, long a, long b) { fail(CALLER, "overflows in %ld * %ld", a, b); }
void __ubsan_handle_negate_overflow(Source*, long a) { fail(CALLER, "overflows in -%ld", a); }
void __ubsan_handle_divrem_overflow(Source*, long a, long b) { fail(CALLER, "divides %ld by %ld", a, b); }
}
