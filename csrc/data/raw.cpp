#include <algorithm>
#include <cstring>

#include "data/decoder.h"

namespace torchaccel::data {

Size RawDecoder::open(const uint8_t* bytes, size_t count) {
  check_pixels(size_.width, size_.height);
  const size_t needed = static_cast<size_t>(size_.width) * size_.height * channels_;
  if (count != needed) {
    throw BadSample("an image of " + std::to_string(needed) + " bytes has " + std::to_string(count));
  }
  bytes_ = bytes;
  return size_;
}

void RawDecoder::start(Region region) {
  region_ = region;
  row_ = 0;
}

int RawDecoder::read(const uint8_t** rows) {
  const int count = std::min(kMostRows, region_.height - row_);
  const size_t bytes = static_cast<size_t>(region_.width) * channels_, stride = bytes + kRowSlack;
  const uint8_t* end = bytes_ + static_cast<size_t>(size_.width) * size_.height * channels_;
  for (int i = 0; i < count; ++i) {
    rows[i] = bytes_ + (static_cast<size_t>(region_.y + row_ + i) * size_.width + region_.x) * channels_;
    if (static_cast<size_t>(end - rows[i]) < stride) {
      copies_.resize(std::max(copies_.size(), stride * kMostRows));
      std::memcpy(copies_.data() + i * stride, rows[i], bytes);
      rows[i] = copies_.data() + i * stride;
    }
  }
  row_ += count;
  return count;
}

}  // namespace torchaccel::data
