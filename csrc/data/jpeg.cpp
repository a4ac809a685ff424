// JPEG by libjpeg-turbo, decoding a region alone: rows above it are skipped, columns beside it are not transformed, and
// what lies below it is not read.
//
// libjpeg reports errors by longjmp. Each call into it is made by a `try_` method that holds nothing to destroy, and
// the exception is thrown by its caller. Warnings mean damaged pixels, so that they are errors here.
#include <csetjmp>
#include <cstdio>
// jpeglib.h needs <cstdio> first.
#include <jerror.h>
#include <jpeglib.h>

#include <algorithm>

#include "data/decoder.h"

namespace torchaccel::data {
namespace {

// Pixels beside the region that chroma upsampling looks at.
constexpr int kMargin = 2;
constexpr int64_t kMostPixelsOfByte = 2048;
// A progressive image of hostile make holds thousands of scans, each as costly as an image.
constexpr int kMostScans = 100;

struct Errors {
  jpeg_error_mgr manager;
  jmp_buf jump;
  char message[JMSG_LENGTH_MAX];
};

[[noreturn]] void on_error(j_common_ptr info) {
  auto* errors = reinterpret_cast<Errors*>(info->err);
  info->err->format_message(info, errors->message);
  longjmp(errors->jump, 1);
}

void on_message(j_common_ptr info, int level) {
  if (level >= 0) return;  // a trace
  const int code = info->err->msg_code;
  if (code != JWRN_ADOBE_XFORM && code != JWRN_JFIF_MAJOR && code != JWRN_TOO_MUCH_DATA) on_error(info);
}

void on_progress(j_common_ptr info) {
  auto* decompress = reinterpret_cast<j_decompress_ptr>(info);
  if (decompress->input_scan_number > kMostScans) {
    auto* errors = reinterpret_cast<Errors*>(info->err);
    std::snprintf(errors->message, sizeof(errors->message), "more than %d scans", kMostScans);
    longjmp(errors->jump, 1);
  }
}

class JpegDecoder final : public Decoder {
 public:
  JpegDecoder() {
    info_.err = jpeg_std_error(&errors_.manager);
    errors_.manager.error_exit = on_error;
    errors_.manager.emit_message = on_message;
    progress_.progress_monitor = on_progress;
    if (!try_create()) fail();
  }
  ~JpegDecoder() override { jpeg_destroy_decompress(&info_); }
  JpegDecoder(const JpegDecoder&) = delete;
  JpegDecoder& operator=(const JpegDecoder&) = delete;

  Size open(const uint8_t* bytes, size_t count) override {
    if (!try_open(bytes, count)) fail();
    check_pixels(info_.image_width, info_.image_height);
    // A block of 64 pixels takes some bits even where it is flat: a header that claims more is damaged, or made to
    // exhaust memory.
    const int64_t pixels = int64_t{info_.image_width} * info_.image_height;
    if (!info_.arith_code && pixels / kMostPixelsOfByte > static_cast<int64_t>(count)) {
      throw BadSample("damaged JPEG: its bytes cannot hold the pixels that its header claims");
    }
    // Within a scan, FF is never followed by D9: without that end marker behind the header, the file was cut, wherever
    // the region lies.
    if (!has_end(info_.src->next_input_byte, bytes + count)) throw BadSample("damaged JPEG: its end is missing");
    return {static_cast<int>(info_.image_width), static_cast<int>(info_.image_height)};
  }

  void start(Region region) override {
    first_ = std::max(0, region.x - kMargin);
    columns_ = std::min<int>(info_.image_width, region.x + region.width + kMargin) - first_;
    skipped_ = region.y;
    if (!try_start()) fail();
    inside_ = region.x - static_cast<int>(first_);
    left_ = region.height;
    stride_ = static_cast<size_t>(info_.output_width) * info_.output_components + kRowSlack;
    if (buffer_.size() < stride_ * kMostRows) buffer_.resize(stride_ * kMostRows);
  }

  int read(const uint8_t** rows) override {
    const int count = std::min(left_, kMostRows);
    if (!try_read(count)) fail();
    left_ -= count;
    for (int i = 0; i < count; ++i) {
      uint8_t* row = buffer_.data() + i * stride_;
      if (info_.out_color_space == JCS_CMYK) cmyk_to_rgb(row);
      rows[i] = row + inside_ * 3;
    }
    return count;
  }

  void close() override {
    jpeg_abort_decompress(&info_);
    if (buffer_.size() > kKeptBytes) std::vector<uint8_t>().swap(buffer_);
  }

 private:
  static constexpr size_t kKeptBytes = 2 << 20;

  bool try_create() {
    if (setjmp(errors_.jump)) return false;
    jpeg_create_decompress(&info_);
    info_.progress = &progress_;
    return true;
  }

  bool try_open(const uint8_t* bytes, size_t count) {
    if (setjmp(errors_.jump)) return false;
    jpeg_mem_src(&info_, const_cast<uint8_t*>(bytes), count);
    jpeg_read_header(&info_, TRUE);
    return true;
  }

  bool try_start() {
    if (setjmp(errors_.jump)) return false;
    const bool four = info_.jpeg_color_space == JCS_CMYK || info_.jpeg_color_space == JCS_YCCK;
    info_.out_color_space = four ? JCS_CMYK : JCS_RGB;
    jpeg_start_decompress(&info_);
    if (columns_ < info_.output_width) jpeg_crop_scanline(&info_, &first_, &columns_);
    if (skipped_ > 0) jpeg_skip_scanlines(&info_, skipped_);
    return true;
  }

  bool try_read(int count) {
    if (setjmp(errors_.jump)) return false;
    JSAMPROW rows[kMostRows];
    for (int i = 0; i < count; ++i) rows[i] = buffer_.data() + i * stride_;
    for (int done = 0; done < count;) done += static_cast<int>(jpeg_read_scanlines(&info_, rows + done, count - done));
    return true;
  }

  [[noreturn]] void fail() { throw BadSample(std::string("damaged JPEG: ") + errors_.message); }

  static bool has_end(const uint8_t* begin, const uint8_t* end) {
    for (const uint8_t* p = end; p - begin >= 2; --p) {
      if (p[-1] == 0xD9 && p[-2] == 0xFF) return true;
    }
    return false;
  }

  // Adobe stores CMYK inverted, others do not; the product of ink and black as Pillow rounds it.
  void cmyk_to_rgb(uint8_t* row) const {
    for (JDIMENSION i = 0; i < info_.output_width; ++i) {
      int ink[4];
      for (int c = 0; c < 4; ++c) ink[c] = info_.saw_Adobe_marker ? 255 - row[4 * i + c] : row[4 * i + c];
      const int light = 255 - ink[3];
      for (int c = 0; c < 3; ++c) {
        const int product = ink[c] * light + 128;
        row[3 * i + c] = static_cast<uint8_t>(light - ((product + (product >> 8)) >> 8));
      }
    }
  }

  jpeg_decompress_struct info_{};
  jpeg_progress_mgr progress_{};
  Errors errors_{};
  std::vector<uint8_t> buffer_;  // [kMostRows][stride_]
  size_t stride_ = 0;
  JDIMENSION first_ = 0, columns_ = 0, skipped_ = 0;
  int inside_ = 0, left_ = 0;
};

}  // namespace

std::unique_ptr<Decoder> make_jpeg_decoder() { return std::make_unique<JpegDecoder>(); }

}  // namespace torchaccel::data
