// conv_chain: a run of layers in one call. Images go to threads whole, as many as there are threads for; those
// that are left over are shared out within each step, with a barrier after it. See chain.h for the plan.
//
// A thread takes some images at a time: first one after the other through the early steps, whose activations stay in
// L2; then all of them together, in lanes, through the late ones, whose weights would not: each part of the weights
// that does serves all images, and small images fill whole vectors.
#include <torch/csrc/stable/library.h>

#include "arguments.h"
#include "barrier.h"
#include "isa.h"
#include "parallel.h"

namespace torchaccel {
namespace {

constexpr int64_t kWeightBytes = 128 << 10;  // that stay in L2 from one tile to the next

struct Chain {
  const ChainStep* steps;
  int64_t count, late_steps;  // the first of the late ones
  int64_t arena_bytes, lanes;
  bool floats;  // the element type
  void (*run)(const ChainStep&, const ChainData&, int64_t begin, int64_t end);
  ChainData data;
  int64_t in_bytes, out_bytes;  // of an image
};

// What a thread works in.
struct Memory {
  uint8_t* arena;
  float* sums;
};

int64_t tiles(const ChainStep& s) { return s.rows * ((s.columns + s.tile - 1) / s.tile); }

// Parts of a tile that are tasks of their own: planes, or slabs of channels.
int64_t units(const Chain& chain, const ChainStep& s) {
  const int64_t slab = static_cast<ChainKind>(s.kind) == ChainKind::kWinograd ? kChainWinogradSlab : kChainSlab;
  return chain.floats ? (s.planes + slab - 1) / slab : s.planes;
}

// Tasks of a step, which threads take contiguous shares of.
int64_t tasks(const Chain& chain, const ChainStep& s) {
  switch (static_cast<ChainKind>(s.kind)) {
    case ChainKind::kConv:
    case ChainKind::kWinograd:
      return tiles(s) * units(chain, s);
    case ChainKind::kTransform:
      return s.planes * s.rows;
    case ChainKind::kStore:
      return chain.floats ? s.planes : s.h;
    default:
      return s.planes;
  }
}

// Estimated clocks of a tile's first `unit` units: an epilogue, and the blocks of weights.
int64_t cost(const Chain& chain, const ChainStep& s, int64_t unit) {
  const int64_t vectors = s.rows * s.columns / tiles(s) + 1;
  const int32_t* rows = chain.data.indices + s.row_offsets;
  if (chain.floats) {
    const int32_t* groups = chain.data.indices + s.starts;
    const int64_t channels = unit * kChainSlab < s.planes ? unit * kChainSlab : s.planes;
    const int32_t* last = groups + 6 * (rows[unit * s.chunks] - 1);
    const int64_t steps = unit > 0 ? int64_t{last[0]} + last[1] : 0;
    return channels * s.chunks * (4 + 2 * vectors) + 4 * steps * vectors;
  }
  const int64_t plane = unit;
  const int64_t blocks = s.block_rows == 0 ? plane * s.blocks : rows[s.block_rows == 1 ? 4 * plane : plane] - rows[0];
  return plane * (20 + 12 * vectors) + blocks * vectors * (s.block_rows == 1 ? 1 : 2);
}

// The first task of thread `part` of `parts`: about equal shares of the tasks, or of the nonzeros.
int64_t first_task(const Chain& chain, const ChainStep& s, int64_t part, int64_t parts) {
  const int64_t all = tasks(chain, s), of_tile = units(chain, s);
  if (part == 0 || part == parts || static_cast<ChainKind>(s.kind) != ChainKind::kConv) return all * part / parts;
  const int64_t each = cost(chain, s, of_tile), target = each * tiles(s) / parts * part;
  const int64_t tile = target / each, twice = 2 * (target - tile * each);
  int64_t low = 0, high = of_tile;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (cost(chain, s, middle) + cost(chain, s, middle + 1) < twice) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return tile * of_tile + low;
}

ChainData images_of(const Chain& chain, int64_t n, int64_t images, int64_t place, const Memory& memory) {
  ChainData data = chain.data;
  data.in = static_cast<const uint8_t*>(data.in) + n * chain.in_bytes;
  data.out = static_cast<uint8_t*>(data.out) + n * chain.out_bytes;
  data.arena = memory.arena;
  data.sums = memory.sums;
  data.image = place;
  data.images = images;
  return data;
}

// Whether a step takes the images one by one.
bool by_image(const Chain& chain, const ChainStep& s) {
  switch (static_cast<ChainKind>(s.kind)) {
    case ChainKind::kLoad:
      return !chain.data.in_float;
    case ChainKind::kStore:
      return !chain.floats;
    case ChainKind::kRelane:
    case ChainKind::kAverage:
      return true;
    default:
      return false;
  }
}

// Units of a tile whose int8 weights stay in L2; slabs of float32 ones are read again for each tile, as their inputs
// take as much.
int64_t units_at_once(const Chain& chain, const ChainStep& s) {
  if (static_cast<ChainKind>(s.kind) != ChainKind::kConv) return tasks(chain, s);
  const int64_t all = units(chain, s);
  if (chain.floats || all == 0) return all;
  const int64_t rows = s.block_rows == 1 ? 4 * all : all;
  const int64_t bytes =
      s.block_rows == 0 ? all * s.blocks * 16 : chain.data.indices[s.row_offsets + rows] * (4 * s.block_rows + 4);
  const int64_t planes = all * kWeightBytes / (bytes + 1);
  return planes < 1 ? 1 : planes < all ? planes : all;
}

// Images [n, n + count) on one thread.
void run_images(const Chain& chain, int64_t n, int64_t count, const Memory& memory) {
  for (int64_t place = 0; place < count; ++place) {
    const ChainData data = images_of(chain, n + place, 1, place, memory);
    for (int64_t i = 0; i < chain.late_steps; ++i) chain.run(chain.steps[i], data, 0, tasks(chain, chain.steps[i]));
  }
  for (int64_t i = chain.late_steps; i < chain.count; ++i) {
    const ChainStep& step = chain.steps[i];
    if (by_image(chain, step)) {
      for (int64_t place = 0; place < count; ++place) {
        chain.run(step, images_of(chain, n + place, 1, place, memory), 0, tasks(chain, step));
      }
      continue;
    }
    const ChainData data = images_of(chain, n, count, 0, memory);
    const int64_t all = tasks(chain, step), wide = units_at_once(chain, step);
    const int64_t of_tile = static_cast<ChainKind>(step.kind) == ChainKind::kConv ? units(chain, step) : all;
    for (int64_t unit = 0; unit < of_tile; unit += wide) {
      const int64_t end = unit + wide < of_tile ? unit + wide : of_tile;
      for (int64_t tile = 0; tile < all; tile += of_tile) chain.run(step, data, tile + unit, tile + end);
    }
  }
}

void run(const Chain& chain, int64_t images, int64_t parts, int64_t arenas, uint8_t* memory) {
  const int64_t whole = images - images % parts;  // shared out by images
  uint8_t* sums = memory + arenas * chain.arena_bytes;
  Barrier barrier(parts);
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    Memory own = {memory + begin * chain.arena_bytes, reinterpret_cast<float*>(sums + begin * kChainScratch)};
    const int64_t stop = end * (whole / parts);
    for (int64_t n = begin * (whole / parts); n < stop; n += chain.lanes) {
      run_images(chain, n, stop - n < chain.lanes ? stop - n : chain.lanes, own);
    }
    barrier.arrive(end - begin);
    own.arena = memory;
    for (int64_t n = whole; n < images; ++n) {
      const ChainData data = images_of(chain, n, 1, 0, own);
      for (int64_t i = 0; i < chain.count; ++i) {
        const ChainStep& step = chain.steps[i];
        chain.run(step, data, first_task(chain, step, begin, parts), first_task(chain, step, end, parts));
        barrier.arrive(end - begin);
      }
    }
  });
}

// The arena of a call: the tensor that was given, if it is large enough and no other call has it; else memory of its
// own.
class Arena {
 public:
  Arena(Tensor& given, int64_t bytes) {
    uint8_t* data = static_cast<uint8_t*>(given.mutable_data_ptr());
    uint8_t* aligned = data + (-reinterpret_cast<intptr_t>(data) & 63);
    if (given.numel() >= bytes + kHead + 64 &&
        __atomic_exchange_n(reinterpret_cast<int32_t*>(aligned), 1, __ATOMIC_ACQUIRE) == 0) {
      taken_ = reinterpret_cast<int32_t*>(aligned);
      data_ = aligned + kHead;
    } else {
      data_ = owned_ = static_cast<uint8_t*>(std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64)));
      if (owned_ == nullptr) throw std::bad_alloc();
    }
  }
  ~Arena() {
    if (taken_ != nullptr) __atomic_store_n(taken_, 0, __ATOMIC_RELEASE);
    std::free(owned_);
  }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  uint8_t* data() const { return data_; }

 private:
  static constexpr int64_t kHead = 64;  // of the tensor: whether it is taken, 0 or 1
  int32_t* taken_ = nullptr;
  uint8_t *data_ = nullptr, *owned_ = nullptr;
};

// The plan is for images of x's size, and gives outputs of the size asked for.
void check_sizes(const Arguments& args, const Chain& chain, const Tensor& x, const std::vector<int64_t>& out_size) {
  STD_TORCH_CHECK(chain.data.in_float || x.size(1) % 4 == 0, args.op(), ": x is int8 and has ", x.size(1),
                  " channels, accepted is a multiple of 4");
  for (int64_t i = 0; i < chain.count; ++i) {
    const ChainStep& s = chain.steps[i];
    const ChainKind kind = static_cast<ChainKind>(s.kind);
    STD_TORCH_CHECK(kind != ChainKind::kLoad || (s.channels == x.size(1) && s.h == x.size(2) && s.w == x.size(3)),
                    args.op(), ": x has shape ", shape_of(x), ", the plan accepts [N, ", s.channels, ", ", s.h, ", ",
                    s.w, "]");
    const bool average = kind == ChainKind::kAverage;
    STD_TORCH_CHECK(
        (kind != ChainKind::kStore && !average) ||
            (s.channels == out_size[0] && (average ? 1 : s.h) == out_size[1] && (average ? 1 : s.w) == out_size[2]),
        args.op(), ": out_size is not that of the plan");
  }
}

Tensor conv_chain(const Tensor& x, const Tensor& plan, const Tensor& values, const Tensor& indices,
                  const Tensor& floats, Tensor arena, int64_t arena_bytes, int64_t late_steps, int64_t lanes,
                  const std::vector<int64_t>& out_size, ScalarType out_dtype) {
  Arguments args("conv_chain", x);
  check_dtype(args.op(), "x", x.scalar_type(), {ScalarType::Float, ScalarType::Char, ScalarType::Byte});
  check_dtype(args.op(), "out_dtype", out_dtype, {ScalarType::Float, ScalarType::Char, ScalarType::Byte});
  STD_TORCH_CHECK(x.dim() == 4 && out_size.size() == 3, args.op(), ": x has shape ", shape_of(x),
                  ", accepted is [N, C, H, W]");
  STD_TORCH_CHECK(plan.scalar_type() == ScalarType::Long && plan.dim() == 2 && plan.size(1) == kChainStepInts &&
                      plan.is_contiguous(),
                  args.op(), ": plan has shape ", shape_of(plan), ", accepted is [steps, ", kChainStepInts, "] int64");
  Chain chain = {};
  chain.steps = static_cast<const ChainStep*>(plan.const_data_ptr());
  chain.count = plan.size(0);
  STD_TORCH_CHECK(0 <= late_steps && late_steps <= chain.count && lanes > 0 && arena_bytes >= 0, args.op(),
                  ": given are arena_bytes=", arena_bytes, ", late_steps=", late_steps, " and lanes=", lanes,
                  "; accepted are at least 0, at most ", chain.count, " and at least 1");
  check_dtype(args.op(), "arena", arena.scalar_type(), {ScalarType::Byte});
  chain.arena_bytes = arena_bytes;
  chain.late_steps = late_steps;
  chain.lanes = lanes;
  chain.floats = values.scalar_type() == ScalarType::Float;
  chain.run = chain.floats ? kernels().chain_f32 : kernels().chain;
  if (chain.floats) {
    chain.data.values = args.vector<float>("values", values, ScalarType::Float, values.numel());
    check_dtype(args.op(), "x", x.scalar_type(), {ScalarType::Float});
    check_dtype(args.op(), "out_dtype", out_dtype, {ScalarType::Float});
  } else {
    chain.data.values = args.vector<int8_t>("values", values, ScalarType::Char, values.numel());
  }
  chain.data.indices = args.vector<int32_t>("indices", indices, ScalarType::Int, indices.numel());
  chain.data.floats = args.vector<float>("floats", floats, ScalarType::Float, floats.numel());
  chain.data.in_float = x.scalar_type() == ScalarType::Float;
  chain.data.out_float = out_dtype == ScalarType::Float;
  check_sizes(args, chain, x, out_size);
  chain.data.nhwc = chain.data.in_float && !x.is_contiguous() && is_nhwc(x);
  const Tensor in = !chain.data.in_float ? in_nhwc(x) : chain.data.nhwc ? x : in_order(x);
  const int64_t n = x.size(0), unit = x.numel() / (n > 0 ? n : 1);
  chain.data.in = in.const_data_ptr();
  chain.in_bytes = unit * (chain.data.in_float ? 4 : 1);
  const int64_t sizes[] = {n, out_size[0], out_size[1], out_size[2]};
  Tensor out = chain.floats && !chain.data.nhwc ? torch::stable::new_empty(x, {sizes, 4})
                                                : empty_nhwc(n, out_size[0], out_size[1], out_size[2], out_dtype);
  chain.data.out = out.mutable_data_ptr();
  chain.out_bytes = out_size[0] * out_size[1] * out_size[2] * (chain.data.out_float ? 4 : 1);
  if (n == 0) return out;
  const int64_t parts = torch::stable::get_num_threads(), arenas = n >= parts ? parts : 1;
  const Arena memory(arena, arenas * arena_bytes + parts * kChainScratch);
  run(chain, n, parts, arenas, memory.data());
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torchaccel, CPU, m) { m.impl("conv_chain", TORCH_BOX(&conv_chain)); }

}  // namespace torchaccel
