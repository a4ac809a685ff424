// Damages image files at random and loads them on several threads, for a build under sanitizers:
// fuzz FOLDER COUNT SEED. Says how many were delivered and how many refused; a report of a sanitizer ends it.
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "data/pool.h"

using namespace torchaccel::data;
using Bytes = std::vector<uint8_t>;

namespace {

class Dice {
 public:
  explicit Dice(uint64_t seed) : state_(seed) {}
  uint64_t roll(uint64_t sides) {  // SplitMix64
    uint64_t z = (state_ += 0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return (z ^ (z >> 31)) % sides;
  }

 private:
  uint64_t state_;
};

void damage(Bytes* bytes, const Bytes& other, Dice* dice) {
  static constexpr uint8_t kTelling[] = {0x00, 0x01, 0x7F, 0x80, 0xC0, 0xC2, 0xC4, 0xD8, 0xD9, 0xDA, 0xDB, 0xFE, 0xFF};
  const size_t reach = dice->roll(2) ? std::min<size_t>(bytes->size(), 700) : bytes->size();  // headers come first
  if (reach < 16) return;
  const size_t at = dice->roll(reach - 8), length = 1 + dice->roll(std::min<size_t>(64, bytes->size() - at - 1));
  const auto begin = bytes->begin() + static_cast<std::ptrdiff_t>(at);
  switch (dice->roll(7)) {
    case 0:
      (*bytes)[at] ^= static_cast<uint8_t>(1u << dice->roll(8));
      break;
    case 1:
      (*bytes)[at] = kTelling[dice->roll(sizeof(kTelling))];
      break;
    case 2:
      for (size_t i = 0; i < 4; ++i) (*bytes)[at + i] = static_cast<uint8_t>(dice->roll(256));
      break;
    case 3:
      bytes->erase(begin, begin + static_cast<std::ptrdiff_t>(length));
      break;
    case 4: {
      const Bytes copy(begin, begin + static_cast<std::ptrdiff_t>(length));
      bytes->insert(begin, copy.begin(), copy.end());
      break;
    }
    case 5:
      for (size_t i = 0; i < length && at + i < other.size(); ++i) (*bytes)[at + i] = other[at + i];
      break;
    default:
      if (dice->roll(4) == 0) bytes->resize(dice->roll(bytes->size()));
  }
}

std::shared_ptr<Recipe> make_recipe(Dice* dice) {
  auto recipe = std::make_shared<Recipe>();
  recipe->out = {static_cast<int>(1 + dice->roll(64)), static_cast<int>(1 + dice->roll(64))};
  recipe->resize = static_cast<Resize>(dice->roll(4));
  recipe->resize_to = {static_cast<int>(1 + dice->roll(80)), static_cast<int>(1 + dice->roll(80))};
  recipe->area[0] = 0.08;
  recipe->log_ratio[0] = -0.3;
  recipe->log_ratio[1] = 0.3;
  recipe->crop = recipe->resize == Resize::kShortSide || dice->roll(2) ? Crop::kCenter : Crop::kRandom;
  if (recipe->resize == Resize::kNone && dice->roll(2)) recipe->crop = Crop::kRandom;
  recipe->flip = 0.5;
  recipe->type = static_cast<Type>(dice->roll(3));
  recipe->channels_last = dice->roll(2);
  recipe->float_table.assign(3 * 256, 0.5f);
  recipe->half_table.assign(3 * 256, 0x3800);
  return recipe;
}

}  // namespace

int main(int, char** arguments) {
  std::vector<Bytes> seeds;
  for (const auto& entry : std::filesystem::directory_iterator(arguments[1])) {
    std::ifstream file(entry.path(), std::ios::binary);
    seeds.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  const size_t count = std::strtoull(arguments[2], nullptr, 10);
  Dice dice(std::strtoull(arguments[3], nullptr, 10));
  constexpr size_t kBatch = 32;
  Pool pool(4);
  size_t failed = 0, done = 0;
  for (; done < count; done += kBatch) {
    std::vector<Bytes> files(kBatch);
    Batch batch;
    batch.recipe = make_recipe(&dice);
    batch.epoch = static_cast<uint32_t>(done);
    for (Bytes& file : files) {
      Source source;
      if (dice.roll(8) == 0) {
        source.pixels = {static_cast<int>(1 + dice.roll(50)), static_cast<int>(1 + dice.roll(50))};
        file.assign(static_cast<size_t>(source.pixels.width) * source.pixels.height * 3, 77);
      } else {
        file = seeds[dice.roll(seeds.size())];
        for (uint64_t times = dice.roll(6); times > 0; --times) damage(&file, seeds[dice.roll(seeds.size())], &dice);
      }
      // Memory of the exact size, so that a byte read behind it is seen.
      source.memory = file.data();
      source.count = file.size();
      source.index = dice.roll(1u << 30);
      batch.sources.push_back(source);
    }
    std::vector<uint8_t> out(kBatch * static_cast<size_t>(batch.recipe->sample_bytes()));
    batch.out = out.data();
    const bool cancelled = dice.roll(16) == 0;
    const int64_t ticket = pool.submit(std::move(batch));
    if (cancelled) {
      while (!pool.cancel(100)) {
      }
      continue;
    }
    while (!pool.wait(ticket, 100)) {
    }
    failed += pool.take(ticket).size();
  }
  const PoolStats stats = pool.stats();
  std::printf("%zu files: %lld delivered, %zu refused\n", done, static_cast<long long>(stats.samples), failed);
  return stats.samples > 0 && failed > 0 ? 0 : 1;
}
