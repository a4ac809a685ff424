// PNG by libpng, to 8-bit RGB without alpha. All rows are read, since a checksum comes after the pixels it covers.
//
// libpng reports errors by longjmp; as in jpeg.cpp, `try_` methods hold nothing to destroy.
#include <png.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "data/decoder.h"

namespace torchaccel::data {
namespace {

constexpr int64_t kMostPixelsOfByte = 8 * 1032;  // of one bit each, as deflate packs best
constexpr png_alloc_size_t kMostChunkBytes = 8 << 20;

class PngDecoder final : public Decoder {
 public:
  PngDecoder() = default;
  ~PngDecoder() override { close(); }
  PngDecoder(const PngDecoder&) = delete;
  PngDecoder& operator=(const PngDecoder&) = delete;

  Size open(const uint8_t* bytes, size_t count) override {
    next_ = bytes;
    end_ = bytes + count;
    if (!try_open()) fail();
    check_pixels(width_, height_);
    if (int64_t{width_} * height_ / kMostPixelsOfByte > static_cast<int64_t>(count)) {
      throw BadSample("damaged PNG: its bytes cannot hold the pixels that its header claims");
    }
    return {static_cast<int>(width_), static_cast<int>(height_)};
  }

  void start(Region region) override {
    region_ = region;
    row_ = 0;
    stride_ = static_cast<size_t>(width_) * 3 + kRowSlack;
    // Rows of an interlaced image come in passes over the whole of it.
    buffer_.resize(std::max(buffer_.size(), stride_ * (interlaced_ ? height_ : kMostRows)));
    if (interlaced_) {
      pointers_.resize(height_);
      for (png_uint_32 y = 0; y < height_; ++y) pointers_[y] = buffer_.data() + y * stride_;
    }
    if (!try_start()) fail();
  }

  int read(const uint8_t** rows) override {
    const int count = std::min(kMostRows, region_.height - row_);
    if (!interlaced_ && !try_read(count)) fail();
    const int first = interlaced_ ? region_.y + row_ : 0;
    for (int i = 0; i < count; ++i) rows[i] = buffer_.data() + (first + i) * stride_ + region_.x * 3;
    row_ += count;
    return count;
  }

  void finish() override {
    if (!try_finish()) fail();
  }

  void close() override {
    png_destroy_read_struct(&png_, &info_, nullptr);
    if (buffer_.size() > kKeptBytes) std::vector<uint8_t>().swap(buffer_);
  }

 private:
  static constexpr size_t kKeptBytes = 2 << 20;

  static void on_error(png_structp png, png_const_charp message) {
    auto* self = static_cast<PngDecoder*>(png_get_error_ptr(png));
    std::snprintf(self->message_, sizeof(self->message_), "%s", message);
    png_longjmp(png, 1);
  }
  static void on_warning(png_structp, png_const_charp) {}

  static void on_read(png_structp png, png_bytep out, size_t count) {
    auto* self = static_cast<PngDecoder*>(png_get_io_ptr(png));
    if (static_cast<size_t>(self->end_ - self->next_) < count) png_error(png, "its end is missing");
    std::memcpy(out, self->next_, count);
    self->next_ += count;
  }

  bool try_open() {
    png_ = png_create_read_struct(PNG_LIBPNG_VER_STRING, this, on_error, on_warning);
    info_ = png_ == nullptr ? nullptr : png_create_info_struct(png_);
    if (info_ == nullptr) {
      std::snprintf(message_, sizeof(message_), "out of memory");
      return false;
    }
    if (setjmp(png_jmpbuf(png_))) return false;
    png_set_read_fn(png_, this, on_read);
    png_set_chunk_malloc_max(png_, kMostChunkBytes);
    png_set_keep_unknown_chunks(png_, PNG_HANDLE_CHUNK_NEVER, nullptr, 0);
    png_read_info(png_, info_);
    width_ = png_get_image_width(png_, info_);
    height_ = png_get_image_height(png_, info_);
    interlaced_ = png_get_interlace_type(png_, info_) != PNG_INTERLACE_NONE;
    return true;
  }

  bool try_start() {
    if (setjmp(png_jmpbuf(png_))) return false;
    const int color = png_get_color_type(png_, info_);
    if (color == PNG_COLOR_TYPE_PALETTE) png_set_palette_to_rgb(png_);
    if (color == PNG_COLOR_TYPE_GRAY) png_set_expand_gray_1_2_4_to_8(png_);
    if ((color & PNG_COLOR_MASK_COLOR) == 0) png_set_gray_to_rgb(png_);
    png_set_scale_16(png_);
    png_set_strip_alpha(png_);
    if (interlaced_) png_set_interlace_handling(png_);
    png_read_update_info(png_, info_);
    if (png_get_rowbytes(png_, info_) != static_cast<size_t>(width_) * 3) png_error(png_, "an unknown pixel format");
    if (interlaced_) png_read_image(png_, pointers_.data());
    for (int y = 0; !interlaced_ && y < region_.y; ++y) png_read_row(png_, buffer_.data(), nullptr);
    return true;
  }

  bool try_read(int count) {
    if (setjmp(png_jmpbuf(png_))) return false;
    for (int i = 0; i < count; ++i) png_read_row(png_, buffer_.data() + i * stride_, nullptr);
    return true;
  }

  bool try_finish() {
    if (setjmp(png_jmpbuf(png_))) return false;
    for (png_uint_32 y = region_.y + row_; !interlaced_ && y < height_; ++y) {
      png_read_row(png_, buffer_.data(), nullptr);
    }
    png_read_end(png_, nullptr);
    return true;
  }

  [[noreturn]] void fail() { throw BadSample(std::string("damaged PNG: ") + message_); }

  png_structp png_ = nullptr;
  png_infop info_ = nullptr;
  const uint8_t *next_ = nullptr, *end_ = nullptr;
  png_uint_32 width_ = 0, height_ = 0;
  bool interlaced_ = false;
  Region region_{};
  int row_ = 0;
  size_t stride_ = 0;
  std::vector<uint8_t> buffer_;      // [kMostRows or height][stride_]
  std::vector<png_bytep> pointers_;  // of an interlaced image
  char message_[256] = {};
};

}  // namespace

std::unique_ptr<Decoder> make_png_decoder() { return std::make_unique<PngDecoder>(); }

}  // namespace torchaccel::data
