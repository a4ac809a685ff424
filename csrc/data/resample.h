// Antialiased bilinear resizing of a window, row by row: as soon as the rows that an output row needs are there, it is
// written, so that no whole image is ever held.
//
// The arithmetic is that of Pillow's bilinear filter, to the bit: weights in 22-bit fixed point, rounded to uint8 after
// each direction; across first, always.
#pragma once

#include "data/decoder.h"
#include "data/kernels.h"
#include "data/recipe.h"

namespace torchaccel::data {

struct Taps {
  std::vector<int> first, count;
  std::vector<int32_t> weights;
  std::vector<int> start;
  std::vector<int16_t> halves;
  int width = 1;           // of the widest output, in inputs
  int blocks = 1;          // of `halves`
  int begin = 0, end = 0;  // inputs that any output needs

  // `in` inputs are resized to `full` outputs, of which `size` from `offset` on are wanted, in reverse if `mirrored`.
  void build(int in, int full, int offset, int size, bool mirrored);
  // Makes inputs count from `begin` on, and fills `start` and `halves`.
  void split();
  Weights view() const {
    return {first.data(),  count.data(), weights.data(), start.data(),
            halves.data(), width,        blocks,         static_cast<int>(first.size())};
  }
};

// Where one sample of a batch goes, in the recipe's type and layout.
class Output {
 public:
  Output(const Recipe& recipe, void* sample) : recipe_(recipe), sample_(sample) {}
  void write(int y, const uint8_t* row) const;

 private:
  const Recipe& recipe_;
  void* sample_;
};

struct Times {
  int64_t read = 0, decode = 0, resize = 0;  // nanoseconds
};

int64_t now_ns();

class Resampler {
 public:
  // Decodes what the view needs, and writes every row of the output.
  void run(Decoder& decoder, const View& view, const Recipe& recipe, const Output& output, Times* times);

 private:
  void copy(Decoder& decoder, const View& view, const Recipe& recipe, const Output& output, Times* times);

  Taps across_, down_;
  std::vector<uint8_t> ring_, row_;
  std::vector<const uint8_t*> rows_;
};

}  // namespace torchaccel::data
