#include "data/resample.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

namespace torchaccel::data {

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void Taps::build(int in, int full, int offset, int size, bool mirrored) {
  const double scale = static_cast<double>(in) / full, stretch = std::max(scale, 1.0), support = stretch;
  width = static_cast<int>(std::ceil(support)) * 2 + 1;
  first.assign(size, 0);
  count.assign(size, 0);
  weights.assign(static_cast<size_t>(size) * width, 0);
  begin = in;
  end = 0;
  std::vector<double> exact(width);
  for (int i = 0; i < size; ++i) {
    const int at = offset + i;
    if (at < 0 || at >= full) continue;  // beside the image: zero
    const int to = mirrored ? size - 1 - i : i;
    const double center = (at + 0.5) * scale;
    const int low = std::max(0, static_cast<int>(center - support + 0.5));
    const int high = std::min(in, static_cast<int>(center + support + 0.5));
    double sum = 0;
    for (int k = 0; k < high - low; ++k) {
      exact[k] = std::max(0.0, 1.0 - std::abs((k + low - center + 0.5) / stretch));
      sum += exact[k];
    }
    int32_t* weight = weights.data() + static_cast<size_t>(to) * width;
    int used = 0;
    for (int k = 0; k < high - low; ++k) {
      weight[k] = static_cast<int32_t>(0.5 + exact[k] / sum * (1 << kWeightBits));
      if (weight[k] != 0) used = k + 1;
    }
    first[to] = low;
    count[to] = used;
    begin = std::min(begin, low);
    end = std::max(end, low + used);
  }
}

void Taps::split() {
  const int inputs = end - begin;
  blocks = std::max(1, (*std::max_element(count.begin(), count.end()) + 3) / 4);
  start.assign(first.size(), 0);
  halves.assign(first.size() * blocks * 8, 0);
  for (size_t i = 0; i < first.size(); ++i) {
    if (count[i] == 0) continue;
    first[i] -= begin;
    // Whole blocks stay inside of the inputs, or at most 3 stick out where there are fewer than one block takes.
    start[i] = std::max(0, std::min(first[i], inputs - 4 * blocks));
    for (int k = 0; k < count[i]; ++k) {
      const int32_t weight = weights[i * width + k];
      const int at = first[i] - start[i] + k;
      int16_t* block = halves.data() + (i * blocks + at / 4) * 8;
      block[at % 4] = static_cast<int16_t>(weight >> kHalfBits);
      block[4 + at % 4] = static_cast<int16_t>(weight & ((1 << kHalfBits) - 1));
    }
  }
}

void Output::write(int y, const uint8_t* row) const {
  const Kernels& k = kernels();
  const int width = recipe_.out.width, channels = recipe_.channels;
  const int64_t plane = static_cast<int64_t>(width) * recipe_.out.height;
  const int64_t at = recipe_.channels_last ? int64_t{y} * width * channels : int64_t{y} * width;
  const bool interleaved = recipe_.channels_last || channels == 1;
  switch (recipe_.type) {
    case Type::kUint8: {
      auto* out = static_cast<uint8_t*>(sample_) + at;
      interleaved ? static_cast<void>(std::memcpy(out, row, static_cast<size_t>(width) * channels))
                  : k.split(row, width, plane, out);
      break;
    }
    case Type::kFloat16: {
      auto* out = static_cast<uint16_t*>(sample_) + at;
      interleaved ? k.look_up_half(row, recipe_.half_table.data(), width, channels, out)
                  : k.planes_half(row, recipe_.half_table.data(), width, channels, plane, out);
      break;
    }
    case Type::kFloat32: {
      auto* out = static_cast<float*>(sample_) + at;
      interleaved ? k.look_up_float(row, recipe_.float_table.data(), width, channels, out)
                  : k.planes_float(row, recipe_.float_table.data(), width, channels, plane, out);
      break;
    }
  }
}

void Resampler::copy(Decoder& decoder, const View& view, const Recipe& recipe, const Output& output, Times* times) {
  const int width = recipe.out.width, channels = recipe.channels;
  const Kernels& kernel = kernels();
  const uint8_t* rows[kMostRows];
  int64_t before = now_ns();
  decoder.start({view.x + view.left, view.y + view.top, width, recipe.out.height});
  for (int y = 0; y < recipe.out.height;) {
    const int count = decoder.read(rows);
    const int64_t decoded = now_ns();
    times->decode += decoded - before;
    for (int i = 0; i < count; ++i, ++y) {
      if (view.flip) kernel.reverse(rows[i], width, channels, row_.data());
      output.write(y, view.flip ? row_.data() : rows[i]);
    }
    before = now_ns();
    times->resize += before - decoded;
  }
}

void Resampler::run(Decoder& decoder, const View& view, const Recipe& recipe, const Output& output, Times* times) {
  const int width = recipe.out.width, height = recipe.out.height;
  const int bytes = width * recipe.channels, stride = bytes + kRowSlack;
  row_.resize(stride);
  const bool inside =
      view.left >= 0 && view.top >= 0 && view.left + width <= view.full.width && view.top + height <= view.full.height;
  if (!view.resizes() && inside) return copy(decoder, view, recipe, output, times);

  int64_t before = now_ns();
  across_.build(view.box.width, view.full.width, view.left, width, view.flip);
  down_.build(view.box.height, view.full.height, view.top, height, false);
  across_.split();
  const Weights weights = across_.view();
  ring_.resize(static_cast<size_t>(stride) * down_.width);
  rows_.resize(down_.width);
  const Kernels& kernel = kernels();
  const uint8_t* decoded[kMostRows];
  int have = down_.begin;  // input rows before this one are in the ring
  int y = 0;
  // Writes the output rows whose inputs are all there.
  const auto write_rows = [&] {
    for (; y < height && (down_.count[y] == 0 || down_.first[y] + down_.count[y] <= have); ++y) {
      for (int k = 0; k < down_.count[y]; ++k) {
        rows_[k] = ring_.data() + static_cast<size_t>((down_.first[y] + k) % down_.width) * stride;
      }
      kernel.down(rows_.data(), down_.weights.data() + static_cast<size_t>(y) * down_.width, down_.count[y], bytes,
                  row_.data());
      output.write(y, row_.data());
    }
  };
  write_rows();  // those above the image
  times->resize += now_ns() - before;
  before = now_ns();
  decoder.start({view.x + across_.begin, view.y + down_.begin, across_.end - across_.begin, down_.end - down_.begin});
  while (have < down_.end) {
    const int count = decoder.read(decoded);
    const int64_t read = now_ns();
    times->decode += read - before;
    for (int i = 0; i < count; ++i) {
      uint8_t* into = ring_.data() + static_cast<size_t>(have % down_.width) * stride;
      kernel.across(decoded[i], weights, recipe.channels, into);
      ++have;
      write_rows();
    }
    before = now_ns();
    times->resize += before - read;
  }
}

}  // namespace torchaccel::data
