// The packed layout of dense weights, and its packing.
#pragma once

#include "../common/check.h"
#include "kernels.h"

namespace torchaccel {

// b [N, C, kh, kw] of any strides (a matrix [N, K] has kh = kw = 1) as DenseWeights::packed wants it.
Tensor pack_weights(const Tensor& b, int64_t groups);

// The weights of a dense op: `packed` checked against the sizes of b, or b packed now into `kept`.
DenseWeights dense_weights(Arguments& args, const Tensor& b, int64_t groups, const OptionalTensor& packed,
                           Tensor& kept);

}  // namespace torchaccel
