// Tasks [begin, end) of a step of a chain, by what its places are; see chain.h.
#pragma once

#include "chain_f32.inl"
#include "chain_floats.inl"
#include "chain_int8.inl"
#include "chain_moves.inl"
#include "chain_pool.inl"
#include "chain_winograd.inl"

static void chain(const ChainStep& s, const ChainData& d, int64_t begin, int64_t end) {
  switch (static_cast<ChainKind>(s.kind)) {
    case ChainKind::kLoad:
      return (d.in_float ? chain_load_quantized : chain_load_bytes)(s, d, begin, end);
    case ChainKind::kRelane:
      return chain_relane(s, d, begin, end);
    case ChainKind::kHalo:
      return chain_halo(s, d, begin, end);
    case ChainKind::kConv:
      return chain_conv_int8(s, d, begin, end);
    case ChainKind::kMaxPool:
      return chain_max_pool<chain_greatest_int8<1>, chain_greatest_int8<4>>(s, d, begin, end);
    case ChainKind::kAverage:
      return chain_average_int8(s, d, begin, end);
    case ChainKind::kStore:
      return chain_store_bytes(s, d, begin, end);
    case ChainKind::kTransform:
    case ChainKind::kWinograd:
      return;  // float32 alone
  }
}

static void chain_f32(const ChainStep& s, const ChainData& d, int64_t begin, int64_t end) {
  switch (static_cast<ChainKind>(s.kind)) {
    case ChainKind::kLoad:
      return chain_load_floats(s, d, begin, end);
    case ChainKind::kRelane:
      return chain_relane(s, d, begin, end);
    case ChainKind::kHalo:
      return chain_halo(s, d, begin, end);
    case ChainKind::kConv:
      return chain_conv_f32(s, d, begin, end);
    case ChainKind::kMaxPool:
      return chain_max_pool<chain_greatest_f32<1>, chain_greatest_f32<4>>(s, d, begin, end);
    case ChainKind::kAverage:
      return chain_average_f32(s, d, begin, end);
    case ChainKind::kStore:
      return chain_store_floats(s, d, begin, end);
    case ChainKind::kTransform:
      return chain_transform(s, d, begin, end);
    case ChainKind::kWinograd:
      return chain_winograd(s, d, begin, end);
  }
}
