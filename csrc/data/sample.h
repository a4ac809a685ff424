// One sample of a batch: from a file, a range of a file or memory into its place in the batch.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/resample.h"

namespace torchaccel::data {

// Exactly one of: the file at `path`; `count` bytes at `offset` of `descriptor`; `count` bytes at `memory`. The last
// may be pixels
// (`pixels` not empty) rather than an encoded image.
struct Source {
  std::string path;
  int descriptor = -1;
  int64_t offset = 0;
  const uint8_t* memory = nullptr;
  size_t count = 0;
  Size pixels;
  uint64_t index = 0;  // in the data set
};

// What a thread keeps from one sample to the next.
class Worker {
 public:
  Worker();
  // Fills the sample; throws BadSample where it cannot, and then the sample's bytes mean nothing.
  void run(const Source& source, const Recipe& recipe, uint64_t seed, uint32_t epoch, void* sample, Times* times);

 private:
  void read_file(const Source& source);
  Decoder& pick(const uint8_t* bytes, size_t count);

  std::unique_ptr<Decoder> jpeg_, png_;
  RawDecoder raw_;
  Resampler resampler_;
  std::vector<uint8_t> file_;
  size_t file_bytes_ = 0;
};

}  // namespace torchaccel::data
