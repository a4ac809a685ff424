// Tilings as unlike each other as they come: one fragment of columns a warp and fewer rows than threads could copy; two
// bands, wide warps, three fragments and rows that the threads do not share evenly, more stages.
#pragma once

#include "products.h"

namespace torchaccel::cuda {

using Small = Tiling<64, 16, 2, 2, 3, 4>;
using Large = Tiling<128, 48, 2, 2, 4, 1>;
using Staged = Tiling<64, 64, 2, 2, 2, 1>;  // its sums take more room than its stages

}  // namespace torchaccel::cuda
