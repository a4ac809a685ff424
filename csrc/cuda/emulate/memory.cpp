#include "memory.h"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

namespace emulate {

Running running;

namespace {

// What is known of one byte that threads share. Two readers suffice: any write that races with a third reader's read
// races with one of them too, since they are of two warps.
struct Byte {
  static constexpr uint16_t kMany = 0xffff;  // threads of the warp
  struct Read {
    uint32_t time;
    uint16_t thread, warp;
  };
  uint32_t written;  // when
  uint16_t writer;
  uint16_t under_way;  // a copy's thread + 1
  uint16_t products;   // of warps, under way, that read it
  Read last, other;    // other: the last of another warp than `last`
};

enum Kind { kInput, kOutput, kWorkspace };

struct Buffer {
  const char* start;
  size_t bytes;
  Kind kind;
  std::string name;
  std::vector<bool> written;  // outputs
  std::vector<Byte> shadow;   // workspaces
};

struct Range {
  const char *start, *end;
  bool holds(const char* p, size_t bytes) const { return p >= start && p + bytes <= end; }
};

alignas(4096) uint8_t shared_area[kMaxShared + 4096];
uint8_t* const shared_base = shared_area + 1024;  // aligned to 1024 and no more
Byte shadow[kMaxShared];
std::vector<Buffer> buffers;  // by address
Buffer* recent = nullptr;
std::vector<Range> constants;  // the library's own

bool ordered(uint32_t time, int thread, int warp, int now) {
  const Clock& clock = running.clock;
  return thread == now || time < clock.barrier || (warp == now / kWarp && time < clock.warp[warp]);
}

void note_read(Byte& byte) {
  const Clock& clock = running.clock;
  const int thread = running.thread;
  const auto warp = static_cast<uint16_t>(thread / kWarp);
  if (byte.last.time >= clock.barrier && byte.last.warp != warp) {
    std::swap(byte.last, byte.other);
    if (byte.last.time < clock.barrier || byte.last.warp != warp) byte.last.time = 0;
  }
  const bool alone = byte.last.time < clock.warp[warp] || byte.last.thread == thread;
  byte.last = {clock.now, alone ? static_cast<uint16_t>(thread) : Byte::kMany, warp};
}

struct Place {
  const char* memory;
  size_t offset;
};

void touch(Byte& byte, bool write, Place place, const void* at) {
  const int thread = running.thread;
  const char* verb = write ? "writes" : "reads";
  if (byte.under_way != 0) {
    fail(at, "%s %s byte %zu while a copy of thread %d to it is under way", verb, place.memory, place.offset,
         byte.under_way - 1);
  }
  if (write && byte.products != 0) {
    fail(at, "writes %s byte %zu, which products under way read", place.memory, place.offset);
  }
  if (!write && byte.written < running.clock.block) {
    fail(at, "reads %s byte %zu, which nobody wrote", place.memory, place.offset);
  }
  if (byte.written >= running.clock.block && !ordered(byte.written, byte.writer, byte.writer / kWarp, thread)) {
    fail(at, "%s %s byte %zu, which thread %d wrote with no barrier since", verb, place.memory, place.offset,
         byte.writer);
  }
  if (!write) return note_read(byte);
  for (const Byte::Read& read : {byte.last, byte.other}) {
    if (read.time < running.clock.barrier || ordered(read.time, read.thread, read.warp, thread)) continue;
    fail(at, "writes %s byte %zu, which %s %d read with no barrier since", place.memory, place.offset,
         read.thread == Byte::kMany ? "others of warp" : "thread",
         read.thread == Byte::kMany ? read.warp : read.thread);
  }
  byte.written = running.clock.now;
  byte.writer = static_cast<uint16_t>(thread);
}

Buffer* find(const char* p) {
  if (recent != nullptr && p >= recent->start && p < recent->start + recent->bytes) return recent;
  auto after = std::upper_bound(buffers.begin(), buffers.end(), p, [](auto* q, auto& b) { return q < b.start; });
  if (after == buffers.begin()) return nullptr;
  return recent = &*--after;
}

void check_buffer(Buffer& buffer, const char* p, size_t bytes, bool write, const void* at) {
  const size_t offset = p - buffer.start;
  const char* name = buffer.name.c_str();
  if (offset + bytes > buffer.bytes) {
    fail(at, "%s bytes %zu to %zu of %s, which has %zu", write ? "writes" : "reads", offset, offset + bytes - 1, name,
         buffer.bytes);
  }
  if (buffer.kind == kInput) {
    if (write) fail(at, "writes byte %zu of %s, an input", offset, name);
  } else if (buffer.kind == kOutput) {
    if (!write) fail(at, "reads byte %zu of %s, an output", offset, name);
    for (size_t i = offset; i < offset + bytes; ++i) {
      if (buffer.written[i]) fail(at, "writes byte %zu of %s a second time", i, name);
      buffer.written[i] = true;
    }
  } else {
    for (size_t i = offset; i < offset + bytes; ++i) {
      Byte& byte = buffer.shadow[i];
      const Clock& clock = running.clock;
      if (!write && byte.written == 0) fail(at, "reads byte %zu of %s, which nobody wrote", i, name);
      const bool other_block = byte.written >= clock.launch && byte.written < clock.block;
      if (other_block) fail(at, "%s byte %zu of %s, which another block wrote", write ? "writes" : "reads", i, name);
      const uint32_t read = std::max(byte.last.time, byte.other.time);
      if (write && read >= clock.launch && read < clock.block) {
        fail(at, "writes byte %zu of %s, which another block read", i, name);
      }
      if (!write && byte.written < clock.launch) {
        note_read(byte);
      } else {
        touch(byte, write, {name, i}, at);
      }
    }
  }
}

bool in_shared(const char* p) {
  const char* base = reinterpret_cast<const char*>(shared_area);
  return p >= base && p < base + sizeof(shared_area);
}

}  // namespace

void check_shared(const void* address, size_t bytes, bool write, const void* at) {
  const int64_t offset = static_cast<const uint8_t*>(address) - shared_base;
  if (offset < 0 || offset + static_cast<int64_t>(bytes) > running.shared) {
    return fail(at, "%s bytes %ld to %ld of shared memory, which has %ld", write ? "writes" : "reads", offset,
                offset + static_cast<int64_t>(bytes) - 1, running.shared);
  }
  for (size_t i = offset; i < offset + bytes; ++i) touch(shadow[i], write, {"shared", i}, at);
}

void check(const void* address, size_t bytes, bool write, const void* at) {
  const char* p = static_cast<const char*>(address);
  if (in_shared(p)) return check_shared(p, bytes, write, at);
  if (Buffer* buffer = find(p); buffer != nullptr && p < buffer->start + buffer->bytes) {
    return check_buffer(*buffer, p, bytes, write, at);
  }
  if (!write) {
    if (Range{running.arguments, running.arguments + running.arguments_bytes}.holds(p, bytes)) return;
    for (const Range& range : constants) {
      if (range.holds(p, bytes)) return;
    }
  }
  const char* verb = write ? "writes" : "reads";
  if (const Buffer* before = find(p)) {
    fail(at, "%s %zu bytes at no buffer, %ld bytes past the end of %s", verb, bytes,
         p - before->start - static_cast<long>(before->bytes), before->name.c_str());
  }
  fail(at, "%s %zu bytes at %p, which is no buffer", verb, bytes, address);
}

void start_copy(const void* shared, const void* global, int bytes, const void* at) {
  if (reinterpret_cast<uintptr_t>(shared) % bytes != 0)
    fail(at, "copies to %p, not aligned to %d bytes", shared, bytes);
  if (reinterpret_cast<uintptr_t>(global) % bytes != 0)
    fail(at, "copies from %p, not aligned to %d bytes", global, bytes);
  if (in_shared(static_cast<const char*>(global))) fail(at, "copies from shared memory");
  check(global, bytes, false, at);
  if (!in_shared(static_cast<const char*>(shared))) fail(at, "copies to %p, not shared memory", shared);
  check_shared(shared, bytes, true, at);
  Byte* byte = shadow + (static_cast<const uint8_t*>(shared) - shared_base);
  for (int i = 0; i < bytes; ++i) byte[i].under_way = static_cast<uint16_t>(running.thread + 1);
}

void land_copy(const void* shared, int bytes) {
  Byte* byte = shadow + (static_cast<const uint8_t*>(shared) - shared_base);
  for (int i = 0; i < bytes; ++i) {
    byte[i].under_way = 0;
    byte[i].written = running.clock.now;
    byte[i].writer = static_cast<uint16_t>(running.thread);
  }
}

void start_read(int64_t offset, int bytes, const void* at) {
  check_shared(shared_base + offset, bytes, false, at);
  for (int64_t i = offset; i < offset + bytes; ++i) {
    Byte& byte = shadow[i];
    if (byte.written > running.clock.visible[byte.writer]) {
      fail(at, "multiplies shared byte %ld, which thread %d wrote with no fence.proxy.async before the barrier", i,
           byte.writer);
    }
    byte.products += kWarpgroup / kWarp;
  }
}

void end_read(int64_t offset, int bytes) {
  for (int64_t i = offset; i < offset + bytes; ++i) {
    --shadow[i].products;
    note_read(shadow[i]);
  }
}

void start_memory(const void* kernel) {
  recent = nullptr;
  constants.clear();
  Dl_info self{};
  dladdr(kernel, &self);
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* base) {
        if (reinterpret_cast<void*>(info->dlpi_addr) != base) return 0;
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& part = info->dlpi_phdr[i];
          const bool readable = (part.p_type == PT_LOAD && !(part.p_flags & PF_W)) || part.p_type == PT_GNU_RELRO;
          const char* start = reinterpret_cast<const char*>(info->dlpi_addr + part.p_vaddr);
          if (readable) constants.push_back({start, start + part.p_memsz});
        }
        return 1;
      },
      self.dli_fbase);
}

void poison_shared() {
  for (int64_t i = 0; i < running.shared; ++i) shadow[i].products = 0;
  for (int64_t i = 0; i < running.shared; ++i) shared_base[i] = static_cast<uint8_t>(0xa5 + 31 * i);
}

}  // namespace emulate

uint8_t* const emulate_shared_memory = emulate::shared_base;

namespace emulate {

void add_buffer(const void* start, int64_t bytes, int64_t kind, const char* name) {
  if (bytes == 0) return;
  Buffer made{static_cast<const char*>(start), static_cast<size_t>(bytes), static_cast<Kind>(kind), name, {}, {}};
  if (kind == kOutput) made.written.resize(bytes);
  if (kind == kWorkspace) made.shadow.resize(bytes, Byte{});
  const auto place =
      std::upper_bound(buffers.begin(), buffers.end(), made.start, [](auto* p, auto& b) { return p < b.start; });
  buffers.insert(place, std::move(made));
  recent = nullptr;
}

void forget_memory(bool abandoned) {
  buffers.clear();
  recent = nullptr;
  if (!abandoned && running.clock.now < uint32_t{1} << 30) return;
  std::memset(shadow, 0, sizeof(shadow));
  running.clock = Clock{};
}

void check_outputs() {
  for (const Buffer& buffer : buffers) {
    if (buffer.kind != kOutput) continue;
    const auto missed = std::find(buffer.written.begin(), buffer.written.end(), false);
    if (missed == buffer.written.end()) continue;
    return fail(nullptr, "byte %ld of %s was never written", missed - buffer.written.begin(), buffer.name.c_str());
  }
}

}  // namespace emulate
