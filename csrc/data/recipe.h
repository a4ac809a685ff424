// What is done to each image, and which pixels that needs: the crop is chosen before anything is decoded.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "data/random.h"

namespace torchaccel::data {

// A sample that cannot be delivered, with the reason. Any other exception is a bug.
struct BadSample : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Size {
  int width = 0, height = 0;
};

enum class Resize { kNone, kShortSide, kExact, kRandomCrop };
enum class Crop { kNone, kCenter, kRandom };
enum class Type { kUint8, kFloat16, kFloat32 };

struct Recipe {
  Size out;
  int channels = 3;  // 1 or 3
  Resize resize = Resize::kNone;
  Size resize_to;                                  // of kExact; width alone of kShortSide
  double area[2] = {1, 1}, log_ratio[2] = {0, 0};  // of kRandomCrop: share of the area, logarithm of width / height
  Crop crop = Crop::kNone;
  int padding = 0;  // zeros around the image, of Crop::kRandom
  double flip = 0;  // probability
  Type type = Type::kUint8;
  bool channels_last = false;
  std::vector<float> float_table;    // [channels][256], what each pixel value becomes
  std::vector<uint16_t> half_table;  // the same in float16

  int64_t sample_bytes() const {
    const int64_t element = type == Type::kUint8 ? 1 : type == Type::kFloat16 ? 2 : 4;
    return element * channels * out.width * out.height;
  }
};

// A box of the image is resized to `full`, of which the window at (left, top) of the recipe's size is kept; where the
// window sticks out, it is zero.
struct View {
  int x = 0, y = 0;
  Size box, full;
  int left = 0, top = 0;
  bool flip = false;

  bool resizes() const { return box.width != full.width || box.height != full.height; }
};

View choose_view(const Recipe& recipe, Size image, const Random& random);

}  // namespace torchaccel::data
