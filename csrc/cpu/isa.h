// Which instruction set serves: the best that processor and system allow, or the one that is forced.
#pragma once

#include "kernels.h"

namespace torchaccel {

// The kernels in use. Throws where TORCHACCEL_ISA names an instruction set that is unknown or not available here.
const Kernels& kernels();

}  // namespace torchaccel
