// uint8 convolutions of whole 16-byte pixels, all tiles of the weights or the kept ones: for mutants.
#include "mutants_tilings.h"

using namespace torchaccel::cuda;

extern "C" int product(const Case* c) { return run_case<Product<Dense<uint8_t>, Image, 16, Small>>(*c, image_of(*c)); }
