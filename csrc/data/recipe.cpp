#include "data/recipe.h"

#include <algorithm>
#include <cmath>

namespace torchaccel::data {
namespace {

// Blocks of random numbers, one a decision, so that no decision moves another's numbers.
constexpr uint32_t kAttempts = 10, kCropBlock = 10, kFlipBlock = 11;

std::string text(Size size) { return std::to_string(size.width) + "x" + std::to_string(size.height); }

// Szegedy et al., "Going deeper with convolutions", 2014, with torchvision's ten attempts and its central fallback.
void random_resized_crop(const Recipe& recipe, Size image, const Random& random, View* view) {
  const double area = static_cast<double>(image.width) * image.height;
  for (uint32_t attempt = 0; attempt < kAttempts; ++attempt) {
    const auto drawn = random.block(attempt);
    const double target = area * (recipe.area[0] + (recipe.area[1] - recipe.area[0]) * uniform(drawn[0]));
    const double ratio =
        std::exp(recipe.log_ratio[0] + (recipe.log_ratio[1] - recipe.log_ratio[0]) * uniform(drawn[1]));
    const double width = std::nearbyint(std::sqrt(target * ratio)), height = std::nearbyint(std::sqrt(target / ratio));
    if (width >= 1 && height >= 1 && width <= image.width && height <= image.height) {
      view->box = {static_cast<int>(width), static_cast<int>(height)};
      view->y = below(drawn[2], image.height - view->box.height + 1);
      view->x = below(drawn[3], image.width - view->box.width + 1);
      return;
    }
  }
  const double ratio = static_cast<double>(image.width) / image.height;
  view->box = image;
  if (ratio < std::exp(recipe.log_ratio[0])) {
    view->box.height = static_cast<int>(std::nearbyint(image.width / std::exp(recipe.log_ratio[0])));
  } else if (ratio > std::exp(recipe.log_ratio[1])) {
    view->box.width = static_cast<int>(std::nearbyint(image.height * std::exp(recipe.log_ratio[1])));
  }
  view->box.width = std::clamp(view->box.width, 1, image.width);
  view->box.height = std::clamp(view->box.height, 1, image.height);
  view->x = (image.width - view->box.width) / 2;
  view->y = (image.height - view->box.height) / 2;
}

int at_center(int from, int to) {
  return from >= to ? static_cast<int>(std::nearbyint((from - to) / 2.0)) : -((to - from) / 2);
}

}  // namespace

View choose_view(const Recipe& recipe, Size image, const Random& random) {
  View view;
  view.box = view.full = image;
  switch (recipe.resize) {
    case Resize::kNone:
      break;
    case Resize::kExact:
      view.full = recipe.resize_to;
      break;
    case Resize::kShortSide: {
      const int64_t side = recipe.resize_to.width, shorter = std::min(image.width, image.height);
      const int64_t longer = side * std::max(image.width, image.height) / shorter;
      if (longer > (1 << 20))
        throw BadSample("an image of " + text(image) + " is too long to be resized by its short side");
      view.full = image.width <= image.height ? Size{static_cast<int>(side), static_cast<int>(longer)}
                                              : Size{static_cast<int>(longer), static_cast<int>(side)};
      break;
    }
    case Resize::kRandomCrop:
      random_resized_crop(recipe, image, random, &view);
      view.full = recipe.out;
      break;
  }
  if (recipe.crop == Crop::kCenter) {
    view.left = at_center(view.full.width, recipe.out.width);
    view.top = at_center(view.full.height, recipe.out.height);
  } else if (recipe.crop == Crop::kRandom) {
    const int across = view.full.width + 2 * recipe.padding - recipe.out.width;
    const int down = view.full.height + 2 * recipe.padding - recipe.out.height;
    if (across < 0 || down < 0) {
      throw BadSample("an image of " + text(view.full) + " is smaller than the crop of " + text(recipe.out));
    }
    const auto drawn = random.block(kCropBlock);
    view.top = below(drawn[0], down + 1) - recipe.padding;
    view.left = below(drawn[1], across + 1) - recipe.padding;
  } else if (view.full.width != recipe.out.width || view.full.height != recipe.out.height) {
    throw BadSample("an image of " + text(view.full) + ", accepted is " + text(recipe.out));
  }
  view.flip = recipe.flip > 0 && uniform(random.block(kFlipBlock)[0]) < recipe.flip;
  return view;
}

}  // namespace torchaccel::data
