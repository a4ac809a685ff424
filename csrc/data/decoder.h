// Images as rows of pixels, a region at a time. Rows are uint8, channels innermost.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "data/kernels.h"
#include "data/recipe.h"

namespace torchaccel::data {

constexpr int64_t kMostPixels = int64_t{1} << 27;  // a larger image is refused by its header
constexpr int kMostRows = 16;                      // of one call of read

struct Region {
  int x, y, width, height;
};

class Decoder {
 public:
  virtual ~Decoder() = default;
  // Reads the header. The bytes must live until close.
  virtual Size open(const uint8_t* bytes, size_t count) = 0;
  virtual void start(Region region) = 0;
  // Points rows[0], rows[1], ... at the next rows of the region, which live until the next call; at least one, at most
  // kMostRows and no more than are left. Throws BadSample for damage.
  virtual int read(const uint8_t** rows) = 0;
  // After the last row, or after an error; throws BadSample for damage that shows only at the end.
  virtual void finish() {}
  virtual void close() = 0;
};

std::unique_ptr<Decoder> make_jpeg_decoder();
std::unique_ptr<Decoder> make_png_decoder();

inline bool is_jpeg(const uint8_t* bytes, size_t count) {
  return count > 2 && bytes[0] == 0xFF && bytes[1] == 0xD8 && bytes[2] == 0xFF;
}
inline bool is_png(const uint8_t* bytes, size_t count) {
  return count > 7 && bytes[0] == 0x89 && bytes[1] == 'P' && bytes[2] == 'N' && bytes[3] == 'G';
}

inline void check_pixels(int64_t width, int64_t height) {
  if (width < 1 || height < 1 || width * height > kMostPixels) {
    throw BadSample("the header claims " + std::to_string(width) + "x" + std::to_string(height) +
                    " pixels, accepted are at most 2^27");
  }
}

// Pixels as they lie in memory: uint8 [height, width, channels].
class RawDecoder final : public Decoder {
 public:
  void describe(Size size, int channels) {
    size_ = size;
    channels_ = channels;
  }
  Size open(const uint8_t* bytes, size_t count) override;
  void start(Region region) override;
  int read(const uint8_t** rows) override;
  void close() override { bytes_ = nullptr; }

 private:
  const uint8_t* bytes_ = nullptr;
  Size size_;
  int channels_ = 3, row_ = 0;
  Region region_{};
  std::vector<uint8_t> copies_;  // of rows behind which the caller's memory ends too soon
};

}  // namespace torchaccel::data
