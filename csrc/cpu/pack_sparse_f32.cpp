// pack_sparse_f32: pruned float32 weights as SparseF32 describes them, in one tensor of int32.
#include "pack_sparse_f32.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <vector>

namespace torchaccel {
namespace {

// The words of the header, then five parts, each from a multiple of 16 words on.
enum Word { kChannels, kDepth, kShared, kGroups, kSteps };
constexpr int64_t kAlign = 16;

int64_t aligned(int64_t words) { return (words + kAlign - 1) / kAlign * kAlign; }

// Where the parts of a packed tensor begin, in words, and where the last one ends.
struct Layout {
  int64_t first, group, offsets, values, end;
  explicit Layout(const SparseF32& w) {
    first = kAlign;
    group = first + aligned(w.slabs() * w.chunks() + 1);
    offsets = group + aligned(3 * w.groups);
    values = offsets + aligned(((w.steps + 2) * w.offsets_a_step() + 1) / 2);
    end = values + aligned(kGroupRows * w.steps);
  }
};

// The nonzeros of a row, or of four rows that share their columns, in ascending k.
struct Entry {
  int64_t k;
  float value[kGroupRows];
};
using Row = std::vector<Entry>;

std::vector<Row> rows_of(const Tensor& values, const int32_t* columns, const int32_t* row_offsets, int64_t block_rows,
                         int64_t taken) {
  const int64_t height = values.size(1), width = values.size(2), units = height / taken;
  const float* data = static_cast<const float*>(values.const_data_ptr());
  std::vector<Row> rows(static_cast<size_t>(block_rows * units));
  for (int64_t b = 0; b < block_rows; ++b) {
    for (int64_t block = row_offsets[b]; block < row_offsets[b + 1]; ++block) {
      for (int64_t unit = 0; unit < units; ++unit) {
        for (int64_t j = 0; j < width; ++j) {
          Entry entry = {columns[block] * width + j, {0, 0, 0, 0}};
          bool any = false;
          for (int64_t r = 0; r < taken; ++r) {
            entry.value[r] = data[(block * height + unit * taken + r) * width + j];
            any = any || entry.value[r] != 0.0f;
          }
          if (any) rows[static_cast<size_t>(b * units + unit)].push_back(entry);
        }
      }
    }
  }
  return rows;
}

// The lists of SparseF32 while they grow.
struct Lists {
  std::vector<int32_t> first, group;
  std::vector<uint16_t> offsets;
  std::vector<float> values;

  int64_t steps() const { return static_cast<int64_t>(values.size()) / kGroupRows; }

  void begin_group(int64_t steps, const uint8_t (&rows)[kGroupRows]) {
    int32_t word;
    std::memcpy(&word, rows, sizeof(word));
    group.insert(group.end(), {static_cast<int32_t>(this->steps()), static_cast<int32_t>(steps), word});
  }
  void add_offset(int64_t k) { offsets.push_back(static_cast<uint16_t>((1 + k % kDepthChunk) * kPanelStride)); }
};

// What a row has in one chunk.
struct Part {
  const Entry* entries;
  int64_t count;
  uint8_t unit;  // of the slab
};

void add_shared(const std::vector<Part>& parts, Lists& lists) {
  for (const Part& part : parts) {
    uint8_t rows[kGroupRows];
    for (int64_t r = 0; r < kGroupRows; ++r) rows[r] = static_cast<uint8_t>(part.unit * kGroupRows + r);
    lists.begin_group(part.count, rows);
    for (int64_t i = 0; i < part.count; ++i) {
      lists.add_offset(part.entries[i].k);
      lists.values.insert(lists.values.end(), part.entries[i].value, part.entries[i].value + kGroupRows);
    }
  }
}

void add_single(const std::vector<Part>& parts, Lists& lists) {
  for (size_t at = 0; at < parts.size(); at += kGroupRows) {
    Part taken[kGroupRows];  // where rows are missing, the last one is computed again
    uint8_t rows[kGroupRows];
    for (size_t r = 0; r < kGroupRows; ++r) {
      taken[r] = parts[std::min(at + r, parts.size() - 1)];
      rows[r] = taken[r].unit;
    }
    lists.begin_group(taken[0].count, rows);
    for (int64_t i = 0; i < taken[0].count; ++i) {
      for (const Part& part : taken) {
        const bool has = i < part.count;
        if (has) lists.add_offset(part.entries[i].k);
        if (!has) lists.offsets.push_back(0);
        lists.values.push_back(has ? part.entries[i].value[0] : 0.0f);
      }
    }
  }
}

Lists lists_of(const std::vector<Row>& rows, const SparseF32& w) {
  Lists lists;
  const size_t units = static_cast<size_t>(w.shared ? kSlabRows / kGroupRows : kSlabRows);
  std::vector<size_t> next(rows.size(), 0);
  for (int64_t slab = 0; slab < w.slabs(); ++slab) {
    const size_t begin = static_cast<size_t>(slab) * units, end = std::min(begin + units, rows.size());
    for (int64_t chunk = 0; chunk < w.chunks(); ++chunk) {
      lists.first.push_back(static_cast<int32_t>(lists.group.size() / 3));
      std::vector<Part> parts;
      for (size_t row = begin; row < end; ++row) {
        const size_t from = next[row];
        while (next[row] < rows[row].size() && rows[row][next[row]].k < (chunk + 1) * kDepthChunk) ++next[row];
        parts.push_back(
            {rows[row].data() + from, static_cast<int64_t>(next[row] - from), static_cast<uint8_t>(row - begin)});
      }
      std::stable_sort(parts.begin(), parts.end(), [](const Part& a, const Part& b) { return a.count > b.count; });
      w.shared ? add_shared(parts, lists) : add_single(parts, lists);
    }
  }
  lists.first.push_back(static_cast<int32_t>(lists.group.size() / 3));
  return lists;
}

void check_blocks(const char* op, const int32_t* columns, const int32_t* row_offsets, int64_t block_rows,
                  int64_t blocks, int64_t width) {
  bool rises = row_offsets[0] == 0 && row_offsets[block_rows] == blocks;
  for (int64_t i = 0; i < block_rows; ++i) rises = rises && row_offsets[i] <= row_offsets[i + 1];
  STD_TORCH_CHECK(rises, op, ": row_offsets must rise from 0 to the ", blocks, " blocks");
  bool fits = true;
  for (int64_t i = 0; i < block_rows; ++i) {
    for (int64_t b = row_offsets[i]; b < row_offsets[i + 1]; ++b) {
      fits = fits && columns[b] >= 0 && columns[b] < width && (b == row_offsets[i] || columns[b] > columns[b - 1]);
    }
  }
  STD_TORCH_CHECK(fits, op, ": columns must lie in 0 to ", width - 1, " and ascend within each row");
}

}  // namespace

Tensor pack_sparse_f32(const Tensor& values, const Tensor& columns, const Tensor& row_offsets, int64_t depth) {
  Arguments args("sparse_conv2d", values);
  check_dtype(args.op(), "values", values.scalar_type(), {ScalarType::Float});
  STD_TORCH_CHECK(values.dim() == 3 && values.size(1) > 0 && values.size(2) > 0 && depth % values.size(2) == 0 &&
                      row_offsets.numel() > 0,
                  args.op(), ": values has shape ", shape_of(values),
                  ", accepted is [blocks, rows, columns], with K=", depth, " a multiple of the columns");
  const int64_t blocks = values.size(0), block_rows = row_offsets.numel() - 1, height = values.size(1);
  const int32_t* column = args.vector<int32_t>("columns", columns, ScalarType::Int, blocks);
  const int32_t* row_offset = args.vector<int32_t>("row_offsets", row_offsets, ScalarType::Int, block_rows + 1);
  check_blocks(args.op(), column, row_offset, block_rows, blocks, depth / values.size(2));

  SparseF32 w = {};
  w.channels = block_rows * height;
  w.depth = depth;
  w.shared = height % kGroupRows == 0;
  const Tensor kept = in_order(values);
  const Lists lists = lists_of(rows_of(kept, column, row_offset, block_rows, w.shared ? kGroupRows : 1), w);
  w.groups = static_cast<int64_t>(lists.group.size()) / 3;
  w.steps = lists.steps();
  const Layout layout(w);
  const int64_t shape[] = {layout.end};
  Tensor out = torch::stable::new_empty(values, {shape, 1}, ScalarType::Int);
  int32_t* to = static_cast<int32_t*>(out.mutable_data_ptr());
  std::memset(to, 0, static_cast<size_t>(layout.end) * 4);
  to[kChannels] = static_cast<int32_t>(w.channels), to[kDepth] = static_cast<int32_t>(depth), to[kShared] = w.shared;
  to[kGroups] = static_cast<int32_t>(w.groups), to[kSteps] = static_cast<int32_t>(w.steps);
  const auto put = [to](int64_t at, const auto& list) {
    if (!list.empty()) std::memcpy(to + at, list.data(), list.size() * sizeof(list[0]));
  };
  put(layout.first, lists.first);
  put(layout.group, lists.group);
  put(layout.offsets, lists.offsets);
  put(layout.values, lists.values);
  return out;
}

void check_packed(const char* op, const Tensor& packed, bool valid) {
  STD_TORCH_CHECK(valid, op, ": packed has shape ", shape_of(packed),
                  ", accepted is what pack_sparse returned for these weights");
}

SparseF32 sparse_f32_of(const char* op, const Tensor& packed, int64_t channels, int64_t depth) {
  const int32_t* words = static_cast<const int32_t*>(packed.const_data_ptr());
  bool fits = packed.scalar_type() == ScalarType::Int && packed.is_contiguous() && packed.numel() >= kAlign &&
              words[kChannels] == channels && words[kDepth] == depth && words[kGroups] >= 0 && words[kSteps] >= 0;
  SparseF32 w = {};
  if (fits) {
    w = {channels, depth, words[kGroups], words[kSteps], words[kShared] != 0, nullptr, nullptr, nullptr, nullptr};
    const Layout layout(w);
    fits = layout.end == packed.numel();
    w.first = words + layout.first;
    w.group = words + layout.group;
    w.offsets = reinterpret_cast<const uint16_t*>(words + layout.offsets);
    w.values = reinterpret_cast<const float*>(words + layout.values);
  }
  const int64_t lists = fits ? w.slabs() * w.chunks() : 0;
  fits = fits && w.first[0] == 0 && w.first[lists] == w.groups;
  for (int64_t i = 0; i < lists; ++i) fits = fits && w.first[i] < w.first[i + 1];
  for (int64_t slab = 0, before = 0; fits && slab <= w.slabs(); ++slab) {
    fits = before <= w.first_step(slab) && w.first_step(slab) <= w.steps;
    before = w.first_step(slab);
  }
  check_packed(op, packed, fits);
  return w;
}

STABLE_TORCH_LIBRARY_IMPL(torchaccel, CPU, m) { m.impl("pack_sparse_f32", TORCH_BOX(&pack_sparse_f32)); }

}  // namespace torchaccel
