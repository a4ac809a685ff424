// Fibers and the order in which they run.
#include <cxxabi.h>
#include <dlfcn.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "memory.h"

// Saves the callee's registers on the stack and goes on at another one.
extern "C" void emulate_switch(void** from, void* to) __attribute__((visibility("hidden")));
asm(R"(
.text
.hidden emulate_switch
.globl emulate_switch
.type emulate_switch, @function
emulate_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulate_switch, .-emulate_switch
)");

// Kernels see these as constants.
extern "C++" {
emulate::Index threadIdx_value asm("threadIdx"), blockIdx_value asm("blockIdx"), blockDim_value asm("blockDim"),
    gridDim_value asm("gridDim");
}

namespace emulate {
namespace {

enum Order { kForward, kReversed, kRandom };

struct Copy {
  uint8_t* to;
  const uint8_t* from;
  int bytes, group;
};

struct Fiber {
  void* stack = nullptr;  // where it goes on
  enum { kReady, kAtBarrier, kAtCollective, kDone } state = kDone;
  const void* at = nullptr;          // the call that it waits in
  void* given = nullptr;             // to the collective
  std::vector<Copy> copies;          // under way, oldest first
  int groups = 0;                    // committed
  const Collective* what = nullptr;  // that it waits at
};

// Who comes to a collective: a warp or a warpgroup.
struct Team {
  int arrived = 0;
  const Collective* what = nullptr;
};

struct Machine {
  Fiber fibers[kMaxThreads];
  uint32_t ready[kMaxThreads / kWarp];  // lanes of each warp
  Team warps[kMaxThreads / kWarp], warpgroups[kMaxThreads / kWarpgroup];
  void* scheduler = nullptr;
  int threads = 0, at_barrier = 0, done = 0;
  void (*body)(const void*) = nullptr;
  std::string kernel_name;

  Order order = kForward;
  int64_t accesses = 0;  // that a launch may take
  std::mt19937 random;

  std::string report;
  int64_t launches = 0, bank_conflicts = 0;
};
Machine machine;

Fiber& self() { return machine.fibers[running.thread]; }

// Gives way until somebody has made the fiber ready.
void give_way() { emulate_switch(&self().stack, machine.scheduler); }

// Of the warp that begins with thread `first`.
uint32_t lanes_from(int first) {
  return machine.threads - first >= kWarp ? ~0u : (1u << (machine.threads - first)) - 1;
}

void make_ready(int warp, uint32_t lanes) {
  machine.ready[warp] |= lanes;
  for (; lanes != 0; lanes &= lanes - 1) machine.fibers[warp * kWarp + __builtin_ctz(lanes)].state = Fiber::kReady;
}

void land(Fiber& fiber, int groups) {
  size_t landed = 0;
  for (; landed < fiber.copies.size() && fiber.copies[landed].group < groups; ++landed) {
    const Copy& copy = fiber.copies[landed];
    if (!running.early) std::memcpy(copy.to, copy.from, copy.bytes);
    land_copy(copy.to, copy.bytes);
  }
  fiber.copies.erase(fiber.copies.begin(), fiber.copies.begin() + landed);
}

// What a fiber does from its start to its end.
void live() {
  machine.body(running.arguments);
  Fiber& fiber = self();
  if (!fiber.copies.empty()) fail(nullptr, "ends with %zu copies under way, not waited for", fiber.copies.size());
  if (const size_t products = products_under_way()) {
    fail(nullptr, "ends with %zu products under way, not waited for", products);
  }
  fiber.state = Fiber::kDone;
  ++machine.done;
  if (machine.at_barrier > 0) fail(nullptr, "ends while %d others wait at a barrier", machine.at_barrier);
  void* nowhere;
  emulate_switch(&nowhere, machine.scheduler);
  std::abort();
}

int pick(uint32_t ready) {
  if (machine.order == kForward) return __builtin_ctz(ready);
  if (machine.order == kReversed) return 31 - __builtin_clz(ready);
  const unsigned turn = machine.random() % kWarp;
  return static_cast<int>((__builtin_ctz(ready >> turn | ready << (kWarp - turn) % kWarp) + turn) % kWarp);
}

// The next fiber to run, or -1. Forward, the first threads run ahead as far as they can; reversed, the last.
int next() {
  const int warps = (machine.threads + kWarp - 1) / kWarp;
  const int start = machine.order == kRandom ? static_cast<int>(machine.random() % warps) : 0;
  for (int i = 0; i < warps; ++i) {
    const int warp = machine.order == kReversed ? warps - 1 - i : (start + i) % warps;
    if (machine.ready[warp] != 0) return warp * kWarp + pick(machine.ready[warp]);
  }
  return -1;
}

void report_deadlock() {
  const Fiber *barrier = nullptr, *collective = nullptr;
  for (int i = 0; i < machine.threads; ++i) {
    const Fiber* fiber = &machine.fibers[i];
    if (fiber->state == Fiber::kAtBarrier && barrier == nullptr) barrier = fiber;
    if (fiber->state == Fiber::kAtCollective && collective == nullptr) collective = fiber;
  }
  const Fiber* const stuck = collective != nullptr ? collective : barrier;
  running.thread = static_cast<int>(stuck - machine.fibers);
  const char* where = collective != nullptr ? collective->what->name : "__syncthreads";
  const char* others =
      barrier != nullptr && collective != nullptr ? "others of the block wait at __syncthreads" : "others do not come";
  fail(stuck->at, "deadlock: waits at %s while %s", where, others);
}

void run_block() {
  Machine& m = machine;
  Clock& clock = running.clock;
  clock.block = clock.barrier = ++clock.now;
  std::fill(std::begin(clock.warp), std::end(clock.warp), clock.now);
  m.done = m.at_barrier = 0;
  poison_shared();
  for (int i = 0; i < m.threads; ++i) {
    Fiber& fiber = m.fibers[i];
    fiber.state = Fiber::kReady;
    fiber.copies.clear();
    fiber.groups = 0;
    auto** top = reinterpret_cast<void**>(running.stacks + (i + 1) * kStack) - 2;
    *top = reinterpret_cast<void*>(live);  // to return to, from six registers
    fiber.stack = top - 6;
  }
  for (int i = 0; i < m.threads; i += kWarp) {
    m.ready[i / kWarp] = lanes_from(i);
    m.warps[i / kWarp] = m.warpgroups[i / kWarpgroup] = {};
  }
  forget_products();
  for (int thread = next(); thread >= 0 && m.report.empty(); thread = next()) {
    m.ready[thread / kWarp] &= ~(1u << thread % kWarp);
    running.thread = thread;
    threadIdx_value.x = static_cast<unsigned>(thread);
    running.in_fiber = true;
    emulate_switch(&m.scheduler, m.fibers[thread].stack);
    running.in_fiber = false;
  }
  if (m.report.empty() && m.done < m.threads) report_deadlock();
  running.thread = -1;
}

void name_kernel(const void* kernel) {
  Dl_info info{};
  dladdr(kernel, &info);
  machine.kernel_name = "a kernel";
  if (info.dli_sname == nullptr) return;
  int status = 0;
  char* readable = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status);
  std::string& name = machine.kernel_name = status == 0 ? readable : info.dli_sname;
  std::free(readable);
  const size_t end = name.find(">(");  // of a template's arguments
  name.resize(std::min(name.size(), end != std::string::npos ? end + 1 : name.find('(')));
  if (name.rfind("void ", 0) == 0) name.erase(0, 5);
}

char* make_stacks() {
  void* made =
      mmap(nullptr, kMaxThreads * kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (made == MAP_FAILED) std::abort();
  for (int i = 0; i < kMaxThreads; ++i) mprotect(static_cast<char*>(made) + i * kStack, 4096, PROT_NONE);
  return static_cast<char*>(made);
}

}  // namespace

void fail(const void* at, const char* format, ...) {
  char text[1024];
  va_list values;
  va_start(values, format);
  std::vsnprintf(text, sizeof(text), format, values);
  va_end(values);
  if (machine.report.empty()) {
    if (running.thread >= 0) {
      machine.report = machine.kernel_name + ", block " + std::to_string(blockIdx_value.x) + ", thread " +
                       std::to_string(running.thread) + ": ";
    }
    machine.report += text;
    Dl_info info{};
    if (at != nullptr && dladdr(at, &info) != 0) {
      std::snprintf(text, sizeof(text), " [at +0x%lx]",
                    static_cast<long>(static_cast<const char*>(at) - static_cast<const char*>(info.dli_fbase)) - 1);
      machine.report += text;
    }
  }
  if (!running.in_fiber) return;
  void* nowhere;
  emulate_switch(&nowhere, machine.scheduler);
}

void launch(const void* kernel, int64_t blocks, int threads, int64_t shared, void (*body)(const void*),
            const void* arguments, size_t bytes) {
  Machine& m = machine;
  if (!m.report.empty()) return;
  name_kernel(kernel);
  if (blocks < 1 || blocks > INT32_MAX || threads < 1 || threads > kMaxThreads || shared < 0 || shared > kMaxShared) {
    return fail(nullptr, "%s: cannot launch %ld blocks of %d threads and %ld bytes of shared memory",
                m.kernel_name.c_str(), blocks, threads, shared);
  }
  if (running.stacks == nullptr) running.stacks = make_stacks();
  ++m.launches;
  running.clock.launch = ++running.clock.now;
  running.shared = shared;
  running.accesses_left = m.accesses;
  running.arguments = static_cast<const char*>(arguments);
  running.arguments_bytes = bytes;
  m.threads = threads;
  m.body = body;
  blockDim_value.x = static_cast<unsigned>(threads);
  gridDim_value.x = static_cast<unsigned>(blocks);
  start_memory(kernel);
  std::vector<unsigned> order;
  if (m.order == kRandom) {
    order.resize(blocks);
    std::iota(order.begin(), order.end(), 0u);
    std::shuffle(order.begin(), order.end(), m.random);
  }
  for (int64_t i = 0; i < blocks && m.report.empty(); ++i) {
    blockIdx_value.x = m.order == kRandom     ? order[i]
                       : m.order == kReversed ? static_cast<unsigned>(blocks - 1 - i)
                                              : static_cast<unsigned>(i);
    run_block();
  }
}

void barrier() {
  Fiber& fiber = self();
  fiber.at = __builtin_return_address(0);
  if (machine.done > 0) fail(fiber.at, "waits at a barrier to which %d ended threads never come", machine.done);
  fiber.state = Fiber::kAtBarrier;
  if (++machine.at_barrier < machine.threads) return give_way();
  machine.at_barrier = 0;
  Clock& clock = running.clock;
  clock.barrier = ++clock.now;
  std::copy_n(clock.fenced, machine.threads, clock.visible);
  for (int i = 0; i < machine.threads; i += kWarp) {
    clock.warp[i / kWarp] = clock.now;
    make_ready(i / kWarp, lanes_from(i));
  }
  give_way();
}

void collective(const Collective& what, void* given) {
  Fiber& fiber = self();
  const int number = running.thread / what.lanes, first = number * what.lanes;
  Team& team = what.lanes == kWarp ? machine.warps[number] : machine.warpgroups[number];
  fiber.at = __builtin_return_address(0);
  fiber.given = given;
  fiber.what = &what;
  if (team.arrived == 0) team.what = &what;
  if (team.what != &what) {
    fail(fiber.at, "comes to %s while other lanes of its warp wait at %s", what.name, team.what->name);
  }
  fiber.state = Fiber::kAtCollective;
  if (++team.arrived < what.lanes) return give_way();
  void* lanes[kWarpgroup];
  for (int i = 0; i < what.lanes; ++i) lanes[i] = machine.fibers[first + i].given;
  what.run(lanes);
  team.arrived = 0;
  for (int i = 0; i < what.lanes; i += kWarp) make_ready((first + i) / kWarp, ~0u);
  give_way();
}

void sync_warp() {
  static const Collective kSync = {
      "__syncwarp", [](void* const*) { running.clock.warp[running.thread / kWarp] = ++running.clock.now; }};
  collective(kSync, nullptr);
}

void copy_async(void* shared, const void* global, int bytes) {
  start_copy(shared, global, bytes, __builtin_return_address(0));
  Fiber& fiber = self();
  fiber.copies.push_back({static_cast<uint8_t*>(shared), static_cast<const uint8_t*>(global), bytes, fiber.groups});
  if (running.early) std::memcpy(shared, global, bytes);
}

void commit_copies() { ++self().groups; }

void wait_copies(int pending) { land(self(), self().groups - pending); }

void count_bank_conflicts(int count) { machine.bank_conflicts += count; }

const void* waiting_at() { return self().at; }

}  // namespace emulate

using emulate::machine;

extern "C" {

// Begins a run: what was registered and reported before is forgotten. order: 0 forward, 1 reversed, 2 random; a launch
// of more than `accesses` to memory, fibers' stacks included, is taken to be endless.
void emulate_begin(int64_t order, int64_t seed, int64_t early, int64_t accesses) {
  emulate::forget_memory(!machine.report.empty());
  machine.report.clear();
  machine.launches = machine.bank_conflicts = 0;
  machine.order = static_cast<emulate::Order>(order);
  machine.random.seed(static_cast<unsigned>(seed));
  emulate::running.early = early != 0;
  machine.accesses = accesses;
}

void emulate_register(const void* start, int64_t bytes, int64_t kind, const char* name) {
  emulate::add_buffer(start, bytes, kind, name);
}

// What the run did wrong, empty if nothing.
const char* emulate_report() {
  if (machine.report.empty()) emulate::check_outputs();
  return machine.report.c_str();
}

int64_t emulate_launches() { return machine.launches; }

// Extra passes that ldmatrix needed, of the run.
int64_t emulate_bank_conflicts() { return machine.bank_conflicts; }
}
