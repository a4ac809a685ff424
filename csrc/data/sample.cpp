#include "data/sample.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace torchaccel::data {
namespace {

constexpr int64_t kMostFileBytes = int64_t{1} << 30;
constexpr size_t kKeptBytes = 4 << 20;

class File {
 public:
  // O_NONBLOCK: opening a pipe would wait for a writer.
  explicit File(const char* path) : descriptor_(open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
    if (descriptor_ < 0) throw BadSample(std::strerror(errno));
  }
  ~File() { close(descriptor_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int descriptor() const { return descriptor_; }

 private:
  int descriptor_;
};

}  // namespace

Worker::Worker() : jpeg_(make_jpeg_decoder()), png_(make_png_decoder()) {}

void Worker::read_file(const Source& source) {
  const auto read_range = [this](int descriptor, int64_t offset, size_t count) {
    if (file_.size() < count || file_.size() > kKeptBytes) std::vector<uint8_t>(count).swap(file_);
    file_bytes_ = count;
    for (size_t done = 0; done < count;) {
      const ssize_t got = pread(descriptor, file_.data() + done, count - done, offset + static_cast<int64_t>(done));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) throw BadSample(std::strerror(errno));
      if (got == 0)
        throw BadSample("the file ended after " + std::to_string(done) + " of " + std::to_string(count) + " bytes");
      done += static_cast<size_t>(got);
    }
  };
  if (source.descriptor >= 0) return read_range(source.descriptor, source.offset, source.count);
  const File file(source.path.c_str());
  struct stat facts;
  if (fstat(file.descriptor(), &facts) != 0) throw BadSample(std::strerror(errno));
  if (!S_ISREG(facts.st_mode)) throw BadSample("not a regular file");
  if (facts.st_size == 0) throw BadSample("the file is empty");
  if (facts.st_size > kMostFileBytes) throw BadSample("the file is larger than 1 GiB");
  read_range(file.descriptor(), 0, static_cast<size_t>(facts.st_size));
}

Decoder& Worker::pick(const uint8_t* bytes, size_t count) {
  if (is_jpeg(bytes, count)) return *jpeg_;
  if (is_png(bytes, count)) return *png_;
  throw BadSample("neither JPEG nor PNG");
}

void Worker::run(const Source& source, const Recipe& recipe, uint64_t seed, uint32_t epoch, void* sample,
                 Times* times) {
  const uint8_t* bytes = source.memory;
  size_t count = source.count;
  const int64_t began = now_ns();
  if (bytes == nullptr) {
    read_file(source);
    bytes = file_.data();
    count = file_bytes_;
  }
  const int64_t read = now_ns();
  times->read += read - began;
  const bool pixels = source.pixels.width > 0;
  if (pixels) raw_.describe(source.pixels, recipe.channels);
  Decoder& decoder = pixels ? raw_ : pick(bytes, count);
  const struct Closing {
    Decoder& decoder;
    ~Closing() { decoder.close(); }
  } closing{decoder};
  const Size size = decoder.open(bytes, count);
  times->decode += now_ns() - read;
  const View view = choose_view(recipe, size, Random(seed, epoch, source.index));
  resampler_.run(decoder, view, recipe, Output(recipe, sample), times);
  const int64_t resized = now_ns();
  decoder.finish();
  times->decode += now_ns() - resized;
}

}  // namespace torchaccel::data
